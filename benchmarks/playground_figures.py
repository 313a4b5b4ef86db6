"""Screenshots of the playground for the docs: a question in two columns, on a desk and on a phone.

    alignvec serve embedded --vector medical=medical-av &
    python benchmarks/playground_figures.py "http://127.0.0.1:8000/?knobs=medical=expert" \
        "My knee hurts when I climb stairs. Why?"

It wants Chromium and its driver, and writes docs/figures/playground.png and playground-phone.png.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PATIENCE = 300  # seconds


def browser(width: int, height: int, scheme: str) -> Any:
    """A headless Chromium of that size, light or dark."""
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    return driver


def ask(driver: Any, box: str, question: str, answers: int) -> None:
    """Ask, and wait until all answers are whole."""
    wait = WebDriverWait(driver, PATIENCE)
    wait.until(lambda _: driver.find_elements("css selector", ".dial"))
    driver.find_element("css selector", f"#{box} textarea").send_keys(question + "\n")
    done = ".answer[data-state=done]"
    wait.until(lambda _: len(driver.find_elements("css selector", done)) == answers)


def main() -> None:
    """Take both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="of the page, with the knobs in its link")
    parser.add_argument("question")
    given = parser.parse_args()
    for name, size, scheme in (
        ("playground", (1280, 860), "light"),
        ("playground-phone", (390, 844), "dark"),
    ):
        driver = browser(*size, scheme)
        driver.get(given.url)
        ask(driver, "question", given.question, 2)
        driver.save_screenshot(str(FIGURES / f"{name}.png"))
        driver.quit()


if __name__ == "__main__":
    main()
