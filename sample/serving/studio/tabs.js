// Tabs: which part of the page is seen.

import { $ } from "./server.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !chosen;
  }
}

export function show(tab) {
  choose(tab);
  tab.focus();
}

// Hides tabs; if the one that is seen is among them, the first that is left is shown.
export function hide(which) {
  for (const tab of tabs) tab.hidden = which(tab.id);
  const left = tabs.filter((tab) => !tab.hidden);
  if (left.length && !left.some((tab) => tab.getAttribute("aria-selected") === "true")) choose(left[0]);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const seen = tabs.filter((one) => !one.hidden);
    const to = { ArrowRight: seen.indexOf(tab) + 1, ArrowLeft: seen.indexOf(tab) - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(seen.at(to % seen.length));
  });
}
