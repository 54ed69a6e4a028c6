"use strict";
// Keys that work anywhere on the page, but not while somebody types.
const Keys = (() => {
  const help = document.getElementById("keys");

  function queries() {
    return [...document.querySelectorAll("article.query")].filter((card) => !card.hidden);
  }

  function step(by) {
    const cards = queries();
    const at = cards.indexOf(document.activeElement.closest("article.query"));
    const next = cards[at < 0 ? (by > 0 ? 0 : cards.length - 1) : at + by];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "start" });
  }

  function openTexts() {
    const cards = [...document.querySelectorAll(".passage")];
    const open = !cards.every((card) => card.classList.contains("open"));
    for (const card of cards) Comparison.toggleText(card, open);
  }

  const actions = {
    "/": () => document.getElementById("search").focus(),
    j: () => step(1),
    k: () => step(-1),
    e: openTexts,
    t: () => Theme.toggle(),
    "?": () => help.showModal(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  document.getElementById("keys-open").addEventListener("click", () => help.showModal());
  document.getElementById("texts").addEventListener("click", openTexts);
})();
