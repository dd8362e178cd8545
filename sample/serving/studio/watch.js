// A training: its curves and its samples over time, as long as it runs.

import { $, ask, element, tell } from "./server.js";

const EVERY = 3000; // milliseconds between two looks
const HEIGHT = 300, LEFT = 64, RIGHT = 32, TOP = 12, BOTTOM = 32;
const run = { facts: null, address: "", shown: undefined, trouble: false };

// Begins to watch if the server has a training; says whether it has.
export async function watch() {
  let answer;
  try {
    answer = await ask("v1/run");
  } catch {
    return false;
  }
  const begun = run.facts !== null;
  await take(await answer.json());
  if (!begun) setInterval(look, EVERY);
  return true;
}

async function look() {
  if ($("watch").hidden || document.hidden || !$("follow").checked) return;
  try {
    await take(await (await ask("v1/run")).json());
    if (run.trouble) tell();
    run.trouble = false;
  } catch (error) {
    run.trouble = true;
    tell(error.message);
  }
}

async function take(facts) {
  const before = run.facts;
  run.facts = facts;
  $("run-told").textContent = `${facts.name}: step ${facts.step.toLocaleString("en")}`;
  const names = [...new Set(Object.keys(facts.curves).map((key) => key.slice(key.indexOf(" ") + 1)))];
  const chosen = $("curve").value;
  if (names.join("\n") !== [...$("curve").options].map((one) => one.value).join("\n")) {
    $("curve").replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(chosen)) $("curve").value = chosen;
  }
  const last = before === null || Number($("sample-at").value) === before.samples.length - 1;
  $("sample-at").max = Math.max(facts.samples.length - 1, 0);
  if (last) $("sample-at").value = $("sample-at").max; // who looks at the newest goes on to do so
  $("samples").hidden = facts.samples.length === 0;
  $("sample-label").hidden = facts.samples.length < 2;
  await showSample();
}

async function showSample() {
  const step = run.facts.samples[Number($("sample-at").value)];
  draw(step);
  if (step === undefined || step === run.shown) return;
  run.shown = step;
  $("sample-told").textContent = `step ${step.toLocaleString("en")}`;
  $("sample-at").setAttribute("aria-valuetext", $("sample-told").textContent);
  const picture = await (await ask(`v1/run/samples?step=${step}`)).blob();
  if (run.shown !== step) return; // the slider has moved on
  URL.revokeObjectURL(run.address);
  run.address = URL.createObjectURL(picture);
  $("sample").src = run.address;
  $("sample").alt = `Samples of step ${step}`;
}

$("sample-at").addEventListener("input", () => showSample().catch((error) => tell(error.message)));
$("curve").addEventListener("change", () => draw(run.shown));
new ResizeObserver(() => run.facts && draw(run.shown)).observe($("plot-box"));

// --- the curve -------------------------------------------------------------------------------------------------------

function mark(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// Round numbers between two, about five; of logarithms, powers of ten, and between few of them 2 and 5.
function powers(low, high) {
  const steps = high - low < 3 ? [1, 2, 5] : [1];
  const tens = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, number) => 10 ** (Math.floor(low) + number));
  return tens.flatMap((ten) => steps.map((step) => step * ten)).filter((value) => value >= 10 ** low && value <= 10 ** high);
}

function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, number) => (Math.ceil(low / step) + number) * step);
}

const short = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

function draw(step) {
  const name = $("curve").value, { curves } = run.facts;
  const train = curves[`train ${name}`] ?? [], val = curves[`val ${name}`] ?? [], points = [...train, ...val];
  $("plot-box").hidden = points.length === 0;
  if (!points.length) return;
  const values = points.map(([, value]) => value), [least, most] = [Math.min(...values), Math.max(...values)];
  const log = least > 0 && most / least > 20; // a loss falls fast, then slowly
  const scaled = log ? Math.log10 : (value) => value;
  const [low, high] = [scaled(least), scaled(most)], end = Math.max(...points.map(([at]) => at), step ?? 0, 1);
  const width = $("plot").clientWidth || 720; // so letters are as large on every screen
  const x = (at) => LEFT + (at / end) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((scaled(value) - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const marks = [];
  for (const value of log ? powers(low, high) : ticks(low, high)) {
    marks.push(mark("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    marks.push(mark("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const tick of ticks(0, end)) marks.push(mark("text", { x: x(tick), y: HEIGHT - 10, "text-anchor": "middle" }, tick.toLocaleString("en")));
  if (step !== undefined) marks.push(mark("line", { class: "here", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }));
  marks.push(mark("polyline", { points: train.map(([at, value]) => `${x(at)},${y(value)}`).join(" ") }));
  marks.push(...val.map(([at, value]) => mark("circle", { cx: x(at), cy: y(value), r: 4 })));
  $("plot").setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  $("plot").replaceChildren(...marks);
  const said = [["training (line)", train], ["validation (dots)", val]].filter(([, some]) => some.length).map(([kind, some]) => {
    const best = some.reduce((one, other) => (other[1] < one[1] ? other : one));
    return `${kind}: ${short(some.at(-1)[1])} at the last step, least ${short(best[1])} at step ${best[0].toLocaleString("en")}`;
  });
  $("plot-told").textContent = `${name}${log ? ", logarithmic" : ""}; ${said.join("; ")}.`;
}
