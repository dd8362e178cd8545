// What a model says of a picture and where things are in it, and how a document goes on.

import { frame, inWords, pointedAt } from "./boxes.js";
import { Card, actions } from "./cards.js";
import { $, Refused, ask, asking, element, isSmall, seedOf, state, working } from "./server.js";
import { show } from "./tabs.js";

let picture = null;

export function offerAsking() {
  const learned = (task) => state.facts.tasks.includes(task);
  $("find").hidden = !learned("ground") && !learned("ground_caption");
}

function take(blob) {
  const reader = new FileReader();
  reader.onload = () => {
    picture = blob;
    $("asked").src = reader.result;
    $("asked-frame").hidden = false;
    $("boxes").replaceChildren();
    $("asked").onload = () => $("asked").classList.toggle("small", isSmall($("asked").naturalWidth));
  };
  reader.readAsDataURL(blob);
}

actions.push(["Ask", "tab-ask", (blob) => {
  take(blob);
  show($("tab-ask"));
}]);
$("ask-file").addEventListener("change", () => $("ask-file").files[0] && take($("ask-file").files[0]));

working($("ask-form"), async (what) => {
  if (!picture) throw new Refused("Choose a picture first, or draw one and press Ask.");
  const question = $("question").value.trim();
  $("boxes").replaceChildren();
  const told = what === "find" ? await find(question) : await answer(question);
  $("answers").prepend(element("p", { textContent: `${question || "Caption"}: ${told}` }));
});

async function answer(question) {
  const content = [{ type: "image_url", image_url: { url: $("asked").src } }];
  if (question) content.push({ type: "text", text: question });
  const fields = { messages: [{ role: "user", content }], task: question ? "question" : "image_to_text" };
  const { choices, record } = await (await ask("v1/chat/completions", asking(fields))).json();
  const boxes = pointedAt(record.pointed);
  frame($("boxes"), boxes);
  const where = boxes.length ? `, after a look at ${boxes.map(said).join(" and ")}` : "";
  return choices[0].message.content + where;
}

const said = (box, number) => inWords(box, number, $("asked").naturalWidth, $("asked").naturalHeight);

async function find(phrase) {
  const { parts } = await (await ask("v1/images/groundings", asking({ image: picture, prompt: phrase }))).json();
  const boxes = parts.flatMap(({ box }) => (box ? [box] : []));
  frame($("boxes"), boxes);
  return parts.map(({ text, box }) => text?.trim() ?? said(box, boxes.indexOf(box))).join(" ") || "nothing is named";
}

// Strings and boxes as one text.
const inOne = (parts, boxInWords) => parts.map((one) => (Array.isArray(one) ? boxInWords(one) : one.trim())).join(" ").trim();

// --- a document that goes on -----------------------------------------------------------------------------------------

working($("tell-form"), async () => {
  const beginning = $("beginning").value;
  const fields = { messages: [{ role: "user", content: beginning }], pictures: Number($("most").value), seed: seedOf("tell-seed") };
  const { choices } = await (await ask("v1/chat/completions", asking(fields))).json();
  let words = [beginning], boxes = []; // what is said before the next picture
  $("told").replaceChildren();
  for (const part of choices[0].message.parts) {
    if (part.type === "text") {
      words.push(...(part.named ?? [part.text]));
      boxes.push(...pointedAt(part));
      continue;
    }
    const card = new Card("");
    card.title = card.caption.textContent = inOne(words, (box) => card.inWords(box, boxes.indexOf(box))) || "and then";
    card.show(part.image_url.url);
    card.figure.append(element("div", { className: "row" }, ...card.frame(boxes)));
    $("told").append(card.figure);
    [words, boxes] = [[], []];
  }
  const last = inOne(words, (box) => `[${boxes.indexOf(box) + 1}]`);
  if (last) $("told").append(element("p", { textContent: last }));
});
