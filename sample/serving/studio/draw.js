// Pictures by a caption: alone, and in pairs that two models or two settings draw from the same seeds.

import { Card, save } from "./cards.js";
import { $, asking, button, draws, element, seedOf, settingFields, settingsOf, state, stream, working } from "./server.js";

const streamed = { stream: true, partial_images: 16 };

export function offerDrawing() {
  settingFields($("settings"), state.facts);
}

working($("draw-form"), async () => {
  const prompt = $("caption").value, n = Number($("count").value);
  const cards = Array.from({ length: n }, () => new Card(prompt));
  const fields = { prompt, n, seed: seedOf("seed"), ...streamed, ...settingsOf($("settings")) };
  $("drawn").replaceChildren(...cards.map((card) => card.figure));
  await stream("v1/images/generations", asking(fields), cards);
});

// --- side by side ----------------------------------------------------------------------------------------------------

const SIDES = ["a", "b"];
const votes = []; // { pair, side, better, worse }
let unsaved = false;

export function offerComparing() {
  for (const [number, side] of SIDES.entries()) {
    const select = $(`model-${side}`);
    select.replaceChildren(...drawing().map((facts) => new Option(facts.id)));
    select.selectedIndex = Math.min(number, drawing().length - 1);
    select.dispatchEvent(new Event("change"));
  }
  const [guidance] = $("settings-b").querySelectorAll("[data-setting=guidance]");
  if (drawing().length > 1 || !guidance) return;
  guidance.value = "1"; // what there is to compare in one model: without guidance
  $("details-b").open = true;
}

const drawing = () => state.models.filter(draws);
const factsOf = (side) => drawing()[$(`model-${side}`).selectedIndex];

for (const side of SIDES) $(`model-${side}`).addEventListener("change", () => settingFields($(`settings-${side}`), factsOf(side)));

working($("compare-form"), async () => {
  const prompt = $("compare-caption").value, n = Number($("compare-count").value), seed = seedOf("compare-seed");
  const sides = SIDES.map((side) => {
    const cards = Array.from({ length: n }, () => new Card(prompt, factsOf(side)));
    for (const { caption } of cards) caption.prepend(`${side.toUpperCase()}: `);
    return { side, cards, options: asking({ prompt, n, seed, ...streamed, ...settingsOf($(`settings-${side}`)) }, factsOf(side)) };
  });
  const hidden = $("blind").checked;
  const pairs = Array.from({ length: n }, (_, place) => {
    const cards = sides.map(({ side, cards }) => ({ side, card: cards[place] }));
    if (hidden && Math.random() < 0.5) cards.reverse();
    const shown = element("div", { className: "pair" }, ...cards.map(({ card }) => card.figure));
    shown.classList.toggle("blind", hidden);
    return { shown, cards };
  });
  $("compared").replaceChildren(...pairs.map(({ shown }) => shown));
  await Promise.all(sides.map(({ options, cards }) => stream("v1/images/generations", options, cards)));
  pairs.forEach(offerVote);
});

function offerVote(pair) {
  const buttons = pair.cards.map(({ side, card }, place) => {
    const made = button("Better", () => {
      const before = votes.findIndex((vote) => vote.pair === pair);
      if (before >= 0) votes.splice(before, 1);
      votes.push({ pair, side, better: card.record, worse: pair.cards[1 - place].card.record });
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === made)));
      pair.shown.classList.remove("blind"); // a vote that is given is told whom it is for
      unsaved = true;
      count();
    });
    made.setAttribute("aria-pressed", "false");
    card.figure.append(made);
    return made;
  });
}

function count() {
  const [a, b] = SIDES.map((side) => votes.filter((vote) => vote.side === side).length);
  $("tally").textContent = `${votes.length} ${votes.length === 1 ? "vote" : "votes"}: A ${a}, B ${b}`;
  $("save-votes").hidden = false;
}

$("save-votes").addEventListener("click", () => {
  save(votes.map(({ side, better, worse }) => JSON.stringify({ side, better, worse }) + "\n"), "votes.jsonl", "application/jsonl");
  unsaved = false;
});

addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
