// The studio: a page over the server's own API (docs/serve.md). It keeps nothing, and loads nothing from elsewhere.

import { offerAsking } from "./ask.js";
import { offerChanging } from "./change.js";
import { offerComparing, offerDrawing } from "./draw.js";
import "./look.js";
import { $, ask, draws, state, tell } from "./server.js";
import { hide } from "./tabs.js";
import { watch } from "./watch.js";

state.meet = async () => {
  tell();
  try {
    state.models = (await (await ask("v1/models")).json()).data;
    $("key-form").hidden = true;
    const watched = await watch();
    $("which").replaceChildren(...state.models.map((facts) => new Option(facts.id)));
    $("which-label").hidden = state.models.length < 2;
    if (state.models.some(draws)) offerComparing();
    take(watched);
  } catch (error) {
    $("model").textContent = "No model yet.";
    tell(error.message);
  }
};

// The chosen model, or image tokenizer, and what it can do.
function take(watched) {
  const facts = (state.facts = state.models[Math.max($("which").selectedIndex, 0)] ?? null);
  const model = facts !== null && draws(facts);
  const knows = (task) => model && (!facts.tasks.length || facts.tasks.includes(task));
  const learned = (task) => facts !== null && facts.tasks.includes(task);
  const offered = {
    "tab-tokens": facts !== null,
    "tab-look": knows("text_to_image"),
    "tab-tell": learned("interleaved"),
    "tab-ask": knows("question") || knows("image_to_text") || learned("ground") || learned("ground_caption"),
    "tab-watch": watched,
  };
  hide((tab) => !(offered[tab] ?? model));
  $("model").textContent = facts === null ? "A training, and no model."
    : !model ? `${facts.id}: an image tokenizer, ${facts.size} pixels`
    : `${facts.id}: ${facts.objective}, ${facts.size} pixels, learned ${facts.tasks.length === 1 ? "1 task" : `${facts.tasks.length || "some"} tasks`}`;
  $("learned").hidden = !model || !facts.tasks.length;
  if (!model) return;
  $("learned").lastElementChild.textContent = facts.tasks.join(", ");
  offerDrawing();
  offerChanging();
  offerAsking();
}

$("which").addEventListener("change", () => take(!$("tab-watch").hidden));

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  state.meet();
});

state.meet();
