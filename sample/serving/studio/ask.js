// What a model says of a picture and where things are in it, and how a document goes on.

import { Card } from "./cards.js";
import { $, Refused, ask, asking, element, isSmall, seedOf, state, working } from "./server.js";

export function offerAsking() {
  const learned = (task) => state.facts.tasks.includes(task);
  $("find").hidden = !learned("ground") && !learned("ground_caption");
}

$("ask-file").addEventListener("change", () => {
  const [file] = $("ask-file").files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    $("asked").src = reader.result;
    $("asked-frame").hidden = false;
    $("boxes").replaceChildren();
    $("asked").onload = () => $("asked").classList.toggle("small", isSmall($("asked").naturalWidth));
  };
  reader.readAsDataURL(file);
});

working($("ask-form"), async (what) => {
  if ($("asked-frame").hidden) throw new Refused("Choose a picture first.");
  const question = $("question").value.trim();
  $("boxes").replaceChildren();
  const said = what === "find" ? await find(question) : await answer(question);
  $("answers").prepend(element("p", { textContent: `${question || "Caption"}: ${said}` }));
});

async function answer(question) {
  const content = [{ type: "image_url", image_url: { url: $("asked").src } }];
  if (question) content.push({ type: "text", text: question });
  const fields = { messages: [{ role: "user", content }], task: question ? "question" : "image_to_text" };
  const { choices } = await (await ask("v1/chat/completions", asking(fields))).json();
  return choices[0].message.content;
}

// Draws the boxes with numbers, and says which they are.
async function find(phrase) {
  const { parts } = await (await ask("v1/images/groundings", asking({ image: $("ask-file").files[0], prompt: phrase }))).json();
  const { naturalWidth: width, naturalHeight: height } = $("asked");
  const said = [];
  let number = 0;
  for (const { text, box } of parts) {
    if (text !== undefined) {
      said.push(text.trim());
      continue;
    }
    const [left, top, right, bottom] = box, frame = element("span", { textContent: ++number });
    const sides = { left, top, width: right - left, height: bottom - top };
    for (const [side, share] of Object.entries(sides)) frame.style[side] = `${100 * share}%`;
    $("boxes").append(frame);
    said.push(`[${number}] (${[left * width, top * height, right * width, bottom * height].map(Math.round).join(", ")})`);
  }
  return said.join(" ") || "nothing is named";
}

// --- a document that goes on -----------------------------------------------------------------------------------------

working($("tell-form"), async () => {
  const beginning = $("beginning").value;
  const fields = { messages: [{ role: "user", content: beginning }], pictures: Number($("most").value), seed: seedOf("tell-seed") };
  const { choices } = await (await ask("v1/chat/completions", asking(fields))).json();
  let said = beginning;
  $("told").replaceChildren();
  for (const part of choices[0].message.parts) {
    if (part.type === "text") {
      said = `${said} ${part.text}`.trim();
      continue;
    }
    const card = new Card(said || "and then");
    card.show(part.image_url.url);
    $("told").append(card.figure);
    said = "";
  }
  if (said) $("told").append(element("p", { textContent: said }));
});
