"use strict";
// The static page: every query, and which of them are in view.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("queries");
  const said = document.getElementById("said");
  const search = document.getElementById("search");
  const which = document.getElementById("which");
  const order = document.getElementById("order");

  const entries = data.queries.map((query, number) => {
    const texts = [query.query, query.continuation || "", query.document || ""];
    for (const passage of query.passages) {
      texts.push(passage.id, passage.title || "", ...passage.extra, passage.text.map((segment) => segment[1]).join(""));
    }
    return {
      query,
      number,
      text: texts.join("\n").toLowerCase(),
      card: Comparison.queryCard(query, data, `Query ${number + 1} of ${data.queries.length}`),
    };
  });

  const gain = (entry) => (entry.query.scored ? entry.query.scored.gain : 0);
  const kept = {
    all: () => true,
    first: (entry) => !entry.query.first_kept,
    new: (entry) => entry.query.tuned.some((item) => item.kind === "new"),
    better: (entry) => gain(entry) > 0,
    worse: (entry) => gain(entry) < 0,
  };
  const orders = {
    given: (a, b) => a.number - b.number,
    changed: (a, b) => a.query.rbo - b.query.rbo || a.number - b.number,
    gain: (a, b) => gain(b) - gain(a) || a.number - b.number,
    loss: (a, b) => gain(a) - gain(b) || a.number - b.number,
  };

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      entry.card.hidden = !(kept[which.value](entry) && words.every((word) => entry.text.includes(word)));
      if (!entry.card.hidden) shown += 1;
    }
    said.textContent = `${shown} of ${entries.length} ${entries.length === 1 ? "query" : "queries"} in view`;
  }

  function sort() {
    const sorted = [...entries].sort(orders[order.value]);
    Comparison.show(place, sorted.map((entry) => entry.card));
    filter();
  }

  search.addEventListener("input", filter);
  which.addEventListener("change", filter);
  order.addEventListener("change", sort);
  document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
  sort();
})();
