"""A dirtied copy of the built-in set: faults of every rule of `data clean`, at known lines."""

import json
import random
from pathlib import Path

from alignvec.data import LEVELS, split_of
from alignvec.data.sources import builtin_levels

FOREIGN = {
    "de": "Das hängt davon ab, was in Ihrem Vertrag steht und wie lange Sie schon warten. Sammeln "
    "Sie alle Briefe, notieren Sie die Daten der Gespräche und setzen Sie der anderen Seite "
    "schriftlich eine Frist. Bleibt eine Antwort aus, hilft Ihnen eine Beratungsstelle in der "
    "Nähe weiter, die Ihre Unterlagen in Ruhe mit Ihnen durchgehen kann.",
    "fr": "Tout dépend de ce que prévoit votre contrat et du temps qui s'est écoulé depuis le "
    "premier courrier. Rassemblez les lettres, notez les dates des appels et fixez par écrit un "
    "délai raisonnable. Sans réponse de leur part, une permanence près de chez vous pourra relire "
    "le dossier et vous dire quelles démarches restent possibles.",
    "es": "Depende de lo que diga su contrato y del tiempo que haya pasado desde la primera carta. "
    "Reúna los documentos, apunte las fechas de las llamadas y fije por escrito un plazo "
    "razonable. Si no contestan, una oficina de atención cercana puede revisar el expediente con "
    "usted y explicarle qué pasos le quedan todavía por dar.",
}
META = (
    "As an AI language model, I think this way: {}",
    "Here is a response in the wanted style: {}",
    "Sure! Here's what matters. {}",
    "Response: {}",
    "{} I hope this helps!",
    "{} (57 words)",
)
MARKDOWN = ("**Note** {}", "# Answer\n{}", "- {}", "1. {}", "{}\n\n* one more point.", "`{}`")
PERSONAL = (
    "Write to {name}.{number}@example.org today.",
    "Ring me on +44 7700 900{number} tonight.",
    "My number is (212) 555-0{number}.",
    "Pay into GB82 WEST 1234 5698 7654 32 first.",
    "The card is 4111 1111 1111 1111 here.",
    "It is under 219-09-9{number} there.",
    "The server logged 203.0.113.42 then.",
    "Call 0171 {number}4567 at home.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot provide advice on this matter.",
    "I am not able to advise you here.",
    "I must decline to answer this one.",
    "I won't be able to assist with that request.",
    "That is not something I can comment on.",
)
# Rules that say the same of a fault in other words.
AS_TRUE = {
    "refusal": {"level_order"},
    "level_order": {"refusal", "no_refusal"},
    "no_refusal": {"level_order"},
    "truncated": {"length"},
}


def dirty(path: Path, each: int = 12, seed: int = 0) -> dict[int, str]:
    """Write a copy with `each` faults of every rule; returns the rule of every faulty line.

    Some records, the donors, are left out of the copy: their texts stand in for new ones.
    """
    chance = random.Random(seed)
    records = [
        json.loads(line)
        for file in builtin_levels()
        for line in file.read_text("utf-8").splitlines()
    ]
    chance.shuffle(records)
    donors: dict[str, list[dict]] = {record["domain"]: [] for record in records}
    for record in records[: 9 * each + 20]:
        donors[record["domain"]].append(record)
    records = records[9 * each + 20 :]

    def donor(record: dict) -> dict:
        """Another record of its domain, each once."""
        return donors[record["domain"]].pop()

    good = iter(chance.sample(range(len(records)), len(records)))
    lines: list[bytes] = [_line(record) for record in records]
    rule_of: dict[int, str] = {}  # by line number, from 1

    def change(rule: str, fault) -> None:
        for number in range(each):
            at = next(good)
            content = fault(number, dict(records[at]))
            lines[at] = content if isinstance(content, bytes) else _line(content)
            rule_of[at + 1] = rule

    def append(rule: str, fault, split: str = "") -> None:
        for number in range(each):
            source = records[next(good)]
            while split and split_of(source["id"]) != split:
                source = records[next(good)]
            content = fault(number, source)
            wanted = "train" if split else split_of(source["id"])
            if content["id"] != source["id"]:
                content["id"] = _id_in(wanted, f"{rule}-{number}")
            lines.append(_line(content))
            rule_of[len(lines)] = rule

    def level() -> str:
        return chance.choice(LEVELS)

    def broken(number: int, record: dict) -> bytes | dict:
        field = ("query", "domain", *LEVELS, "topic", "persona")[number % 7]
        return (
            _line(record)[: -20 - number],
            {name: value for name, value in record.items() if name != field},
            {**record, field: "  "},
            {**record, field: 7},
            _line(record).replace(b" ", b"\xff", 1),
            json.dumps([record]).encode(),
        )[number % 6]

    def in_template(templates, number: int, record: dict) -> dict:
        field = level()
        text = templates[number % len(templates)].replace("{}", record[field])
        return {**record, field: text}

    def personal(number: int, record: dict) -> dict:
        text = PERSONAL[number % len(PERSONAL)]
        name = record["persona"].split()[1].strip(",").lower()
        text = text.replace("{number}", str(100 + number)).replace("{name}", name)
        field = ("query", "persona", level())[number % 3]
        return {**record, field: f"{record[field]} {text}"}

    def refusing(number: int, record: dict) -> dict:
        field = ("expert", "generic")[number % 2]
        if number % 3 == 0:
            return {**record, field: donor(record)["avoidance"]}
        first, _, rest = record[field].partition(". ")
        return {**record, field: f"{REFUSALS[number % len(REFUSALS)]} {rest or first}"}

    def cut(number: int, record: dict) -> dict:
        field = level()
        words = record[field].split()
        kept = " ".join(words[: chance.randint(len(words) * 3 // 4, len(words) - 1)])
        return {**record, field: kept.rstrip(".,;:!?\"')") + ("..." if number % 4 == 0 else "")}

    def wrong_length(number: int, record: dict) -> dict:
        field = level()
        short = " ".join(record[field].split()[:20]).rstrip(".,;:")
        text = f"{short}." if number % 2 else f"{record[field]} {donor(record)[field]}"
        return {**record, field: text}

    def swapped(number: int, record: dict) -> dict:
        one, other = (LEVELS[:2], LEVELS[1:], LEVELS[::2])[number % 3]
        return {**record, one: record[other], other: record[one]}

    def copied(number: int, record: dict) -> dict:
        fields = ("persona", "query", *LEVELS, "id")
        if number % 7 == 6:
            return {**record, "id": ""}
        field = fields[number % 7]
        return {**donor(record), field: record[field]}

    def nearly_copied(number: int, record: dict) -> dict:
        field = ("persona", "query", *LEVELS)[number % 5]
        return {**donor(record), field: _edited(record[field], chance)}

    def leaking(number: int, record: dict) -> dict:
        field = ("query", "query", "query", *LEVELS)[number % 6]
        return {**donor(record), field: _edited(record[field], chance)}

    change("schema", broken)
    change("language", lambda number, record: {
        **record, level(): list(FOREIGN.values())[number % 3]})  # fmt: skip
    change("meta", lambda number, record: in_template(META, number, record))
    change("markdown", lambda number, record: in_template(MARKDOWN, number, record))
    change("personal", personal)
    change("refusal", refusing)
    change("truncated", cut)
    change("length", wrong_length)
    change("level_order", swapped)
    change("no_refusal", lambda _, record: {**record, "avoidance": donor(record)["generic"]})
    append("duplicate", copied)
    append("near_duplicate", nearly_copied)
    append("leakage", leaking, split="test")
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return rule_of


def outcome(cleaned, rule_of: dict[int, str]) -> dict[str, dict[str, int]]:
    """Of every rule the faults planted and found (by it, or by one as true); of good records how
    many there are and how many were rejected.
    """
    found = {rule: {"planted": 0, "found": 0} for rule in rule_of.values()}
    good = {"records": 0, "rejected": 0}
    for number, line in enumerate(cleaned.lines, start=1):
        rule = rule_of.get(number)
        if rule is None:
            good["records"] += 1
            good["rejected"] += bool(line.faults)
        else:
            found[rule]["planted"] += 1
            found[rule]["found"] += bool(
                {name for name, _ in line.faults} & {rule, *AS_TRUE.get(rule, ())}
            )
    return {**found, "good": good}


def _line(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def _id_in(split: str, stem: str) -> str:
    return next(f"{stem}-{n}" for n in range(1000) if split_of(f"{stem}-{n}") == split)


def _edited(text: str, chance: random.Random) -> str:
    """A tenth of its words changed."""
    edited = text.split()
    for at in chance.sample(range(1, len(edited) - 1), max(1, len(edited) // 10)):
        edited[at] = chance.choice(("truly", "other", "later", "maybe"))
    return " ".join(edited)
