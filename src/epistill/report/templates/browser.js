// The trace browser. `thinking` and `answer` were escaped when the page was written; everything else
// goes in as text.
const PAGE = 20;
const traces = JSON.parse(document.getElementById("traces-data").textContent);
const control = (id) => document.getElementById(id);
let limit = PAGE;
control("side").append(...[...new Set(traces.map((t) => t.side))].map((name) => new Option(name)));
function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
function entry(trace) {
  const node = make("div", "entry");
  const grade = trace.score === null ? "not graded" : trace.score ? "correct" : "wrong";
  const line = make("p", "facts");
  line.append(make("b", "", trace.side + " · " + grade), " · " + trace.problem + " · row " + trace.row +
    " · length " + trace.length.toLocaleString("en") +
    (trace.density === null ? "" : " · " + trace.density.toFixed(1) + " markers per 1,000"));
  node.dataset.grade = grade;
  node.append(line);
  if (trace.thinking) {
    const folded = make("details", "");
    const text = make("div", "trace");
    text.innerHTML = trace.thinking;
    folded.append(make("summary", "", "thinking"), text);
    node.append(folded);
  }
  const answer = make("div", "trace");
  answer.innerHTML = trace.answer;
  node.append(answer);
  return node;
}
function browse() {
  const order = control("sort").value, key = order.slice(0, -1), sign = order.endsWith("-") ? -1 : 1;
  const side = control("side").value, grade = control("grade").value;
  const wanted = control("problem").value.toLowerCase();
  const chosen = traces.filter((t) => (!side || t.side === side) && (!grade || String(t.score) === grade) &&
    (!wanted || t.problem.toLowerCase().includes(wanted)));
  const value = (t) => t[key] === null ? -1 : t[key];
  chosen.sort((one, other) => sign * (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0));
  control("entries").replaceChildren(...chosen.slice(0, limit).map(entry));
  control("count").textContent = Math.min(limit, chosen.length) + " of " + chosen.length + " shown";
  control("more").hidden = chosen.length <= limit;
  document.body.dataset.entries = chosen.length;
}
for (const id of ["side", "grade", "sort", "problem"]) {
  control(id).oninput = () => { limit = PAGE; browse(); };
}
control("more").onclick = () => { limit += PAGE; browse(); };
// A link such as page.html#grade=0&sort=length- opens the page with that choice.
for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
  if (["side", "grade", "sort", "problem"].includes(id)) control(id).value = value;
}
browse();
