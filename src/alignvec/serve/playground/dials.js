// The knobs of one column: a slider each, its levels as buttons below where they lie on it.
// `props.value` is a Dials (dials.py). Text goes into the page as text, never as HTML.
const root = element.querySelector(".dials");
const THUMB = 20; // px; the middle of a slider's thumb stops half of it before the ends

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const shown = number => String(+number.toFixed(4)).replace("-", "\u2212");
const dials = () => props.value;
const at = knob => dials()[dials().side][knob.name] ?? 0;

function summary(side) {
  const turned = dials().knobs.filter(knob => dials()[side][knob.name]);
  return turned.map(knob => `${knob.name} ${shown(dials()[side][knob.name])}`).join(" · ") || "base";
}

function set(changes) {
  const { side } = dials();
  props.value = { ...dials(), [side]: { ...dials()[side], ...changes } };
  refresh();
}

// "left%" of a strength on the slider, in CSS.
function place(knob, strength) {
  const share = Math.min(1, Math.max(0, (strength - knob.low) / (knob.high - knob.low)));
  return `calc(${THUMB / 2}px + ${share} * (100% - ${THUMB}px))`;
}

function marks(knob) {
  const levels = Object.entries(knob.levels);
  if (!levels.some(([, strength]) => strength === 0)) levels.push(["base", 0]);
  return levels.sort((a, b) => a[1] - b[1]);
}

function dial(knob, index) {
  const id = `dial-${index}`;
  const slider = make("input", {
    type: "range", id, min: knob.low, max: knob.high, step: knob.step, "aria-describedby": `${id}-note`,
    oninput: () => set({ [knob.name]: Math.abs(+slider.value) < 1e-9 ? 0 : +(+slider.value).toFixed(4) }),
  });
  const box = make("input", {
    type: "number", step: "any", "aria-label": `${knob.name}: strength`,
    oninput: () => Number.isFinite(box.valueAsNumber) && set({ [knob.name]: box.valueAsNumber }),
    onblur: () => refresh(),
    onkeydown: event => event.key === "Enter" && box.blur(),
  });
  const track = make("div", { class: "track" });
  if (knob.safe) {
    const safe = make("span", { class: "safe" });
    safe.style.left = place(knob, knob.safe[0]);
    safe.style.right = `calc(100% - (${place(knob, knob.safe[1])}))`;
    track.append(safe);
  }
  const buttons = make("div", { class: "levels", role: "group", "aria-label": `${knob.name}: levels` });
  for (const [name, strength] of marks(knob)) {
    const tick = make("i");
    tick.style.left = place(knob, strength);
    track.append(tick);
    const button = make("button", {
      type: "button", title: `${name}: ${shown(strength)}`, "data-strength": strength,
      onclick: () => set({ [knob.name]: strength }),
    }, name);
    button.style.left = place(knob, strength);
    buttons.append(button);
  }
  track.append(slider);
  const node = make("section", { class: "dial" },
    make("div", { class: "name" }, make("label", { for: id }, knob.name), box),
    track, buttons, make("p", { id: `${id}-note`, role: "status" }));
  node.knob = knob;
  node.parts = { slider, box, buttons };
  return node;
}

// What changes when a knob is turned; nothing is made anew, so the focus stays.
function refresh() {
  for (const node of root.querySelectorAll(".dial")) {
    const { knob, parts: { slider, box, buttons } } = node;
    const strength = at(knob);
    slider.value = strength;
    slider.style.setProperty("--zero", place(knob, 0));
    if (document.activeElement !== box) box.value = strength;
    let level = "";
    for (const button of buttons.children) {
      const here = +button.dataset.strength === strength;
      button.setAttribute("aria-pressed", here);
      if (here) level = button.textContent;
    }
    slider.setAttribute("aria-valuetext", [shown(strength), level].filter(Boolean).join(", "));
    const beyond = knob.safe && strength && (strength < knob.safe[0] || strength > knob.safe[1]);
    node.classList.toggle("beyond", Boolean(beyond));
    const range = knob.safe && `${shown(knob.safe[0])} to ${shown(knob.safe[1])}`;
    const note = !knob.safe ? "Not calibrated: 0 is the base, 1 the aligned model."
      : beyond ? `Beyond the safe range, ${range}: answers may break.` : `Safe: ${range}`;
    const told = node.querySelector("p");
    if (told.textContent !== note) told.textContent = note;
  }
  for (const side of ["left", "right"]) {
    const pick = root.querySelector(`[data-side=${side}]`);
    pick.querySelector("small").textContent = summary(side);
    pick.querySelector("input").checked = dials().side === side;
  }
}

// Labels that would overlap go down a row.
function stagger() {
  for (const levels of root.querySelectorAll(".levels")) {
    const width = levels.clientWidth;
    if (!width) continue;
    const ends = [];
    let height = 0;
    for (const button of levels.children) {
      button.style.translate = "-50% 0";
      button.style.top = "0";
      const box = levels.getBoundingClientRect();
      let { left, right } = button.getBoundingClientRect();
      left -= box.left; right -= box.left;
      const shift = left < 0 ? -left : right > width ? width - right : 0;
      let row = 0;
      while (ends[row] > left + shift) row++;
      ends[row] = right + shift;
      button.style.translate = `calc(-50% + ${shift}px) 0`;
      button.style.top = `${row * button.offsetHeight}px`;
      height = Math.max(height, (row + 1) * button.offsetHeight);
    }
    levels.style.height = `${height}px`;
  }
}

function side(name, title) {
  const radio = make("input", {
    type: "radio", name: "side", value: name,
    onchange: () => { props.value = { ...dials(), side: name }; refresh(); },
  });
  return make("label", { "data-side": name }, radio, make("b", {}, title), make("small"));
}

function draw() {
  const { knobs } = dials();
  const sides = make("div", { class: "sides", role: "radiogroup", "aria-label": "Whose knobs" },
    side("left", "Left"), side("right", "Right"));
  const zero = () => set(Object.fromEntries(knobs.map(knob => [knob.name, 0])));
  const reset = make("button", { type: "button", class: "reset", onclick: zero }, "All to the base");
  root.replaceChildren(sides, ...knobs.map(dial), ...(knobs.length ? [reset] : []));
  refresh();
  stagger();
}

watch("value", draw);
draw();
new ResizeObserver(stagger).observe(root);
