// Questions, and below each its answers side by side. `props.value` is a Talk (talk.py).
// It grows in place: what is selected stays so, and text is text, never HTML.
const root = element.querySelector(".talk");
root.setAttribute("role", "log"); // read out once an answer is no longer busy

function make(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

// **Strong** and `code`, which is what small models write; the rest stands as it is.
function write(node, text) {
  if (node.written === text) return;
  node.written = text;
  node.replaceChildren(...text.split(/(\*\*[^*\n]+\*\*|`[^`\n]+`)/).map(part =>
    /^\*\*.+\*\*$/.test(part) ? make("strong", "", part.slice(2, -2))
      : /^`.+`$/.test(part) ? make("code", "", part.slice(1, -1)) : part));
}

function grow(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, index) => update(parent.children[index] ?? parent.appendChild(create()), item));
}

function answer() {
  const node = make("article", "answer");
  node.parts = {
    place: make("span", "place"), setting: make("span", "setting"), text: make("div", "text"),
    error: make("p", "error"), warning: make("p", "warning"), note: make("p", "note"),
  };
  const { place, setting, ...rest } = node.parts;
  rest.text.dir = "auto";
  rest.error.setAttribute("role", "alert");
  node.append(make("header", "", place, setting), ...Object.values(rest));
  return node;
}

function fill(node, said) {
  const { place, setting, text, error, warning, note } = node.parts;
  put(place, said.place);
  put(setting, said.setting);
  write(text, said.text);
  put(error, said.error);
  put(warning, said.warning);
  put(note, said.note);
  node.dataset.state = said.state;
  node.setAttribute("aria-busy", said.state !== "done");
}

const tab = element.closest(".tabitem");
let stopped = false; // the last turn; what was on its way then may still come
let before = props.value.turns.length;

function draw() {
  const near = innerHeight + scrollY > document.documentElement.scrollHeight - 160;
  const turns = props.value.turns;
  if (turns.length !== before) stopped = false;
  const over = answer => answer.state === "done" ? answer
    : { ...answer, state: "done", note: answer.note || "stopped" };
  const shown = turns.map((turn, index) => index === turns.length - 1 && !stopped ? turn
    : { ...turn, answers: turn.answers.map(over) });
  grow(root, shown, () => make("section", "turn", make("p", "question"), make("div", "answers")),
    (node, turn) => {
      const [question, answers] = node.children;
      question.dir = "auto";
      put(question, turn.question);
      answers.style.setProperty("--columns", turn.answers.length);
      grow(answers, turn.answers, answer, fill);
    });
  root.dataset.empty = !turns.length;
  const runs = (shown.at(-1)?.answers ?? []).some(said => said.state !== "done");
  tab.classList.toggle("running", runs); // which of Send and Stop is there
  if (turns.length > before) root.lastElementChild.scrollIntoView({ block: "nearest" });
  else if (near && runs) scrollTo(0, document.documentElement.scrollHeight);
  before = turns.length;
}

tab.addEventListener("click", event => {
  if (event.target.closest(".stop")) { stopped = true; draw(); }
});
watch("value", draw);
draw();
