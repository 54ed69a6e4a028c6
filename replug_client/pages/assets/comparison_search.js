"use strict";
// The served page: what is typed is searched for with both retrievers; the LM's scores follow when they are there.
(() => {
  const service = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("tools");
  const query = document.getElementById("search");
  const continuation = document.getElementById("continuation");
  const count = document.getElementById("count");
  const place = document.getElementById("queries");
  const said = document.getElementById("said");
  const WAIT = 350; // milliseconds without a key before it is searched for
  let asked = null;
  let timer = null;

  async function ask(parameters, signal) {
    const answer = await fetch(`/api/search?${new URLSearchParams(parameters)}`, { signal });
    let value;
    try {
      value = await answer.json();
    } catch {
      throw new Error(`the server answered ${answer.status}, but not with JSON`);
    }
    if (!answer.ok) throw new Error(value.error);
    return value;
  }

  // The lists are drawn again when the LM's scores are there; who has moved into them stays where they are.
  function draw(found) {
    const focused = document.activeElement.closest(".passage");
    Comparison.show(place, [Comparison.queryCard(found, service, "What both retrievers find")]);
    if (!focused) return;
    const { side, passage } = focused.dataset;
    const again = place.querySelector(`.passage[data-side="${side}"][data-passage="${passage}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  async function search() {
    clearTimeout(timer);
    if (asked) asked.abort();
    if (!query.value.trim()) {
      place.replaceChildren();
      said.textContent = "";
      return;
    }
    asked = new AbortController();
    const { signal } = asked;
    const parameters = { query: query.value, continuation: continuation.value, k: count.value || service.k, lm: 0 };
    try {
      said.textContent = "searching \u2026";
      draw(await ask(parameters, signal));
      said.textContent = service.supervisor ? "the LM is reading \u2026" : "";
      if (service.supervisor) {
        draw(await ask({ ...parameters, lm: 1 }, signal));
        said.textContent = "";
      }
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = `This did not work: ${error.message}`;
    }
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(search, WAIT);
  }

  for (const field of [query, continuation, count]) field.addEventListener("input", soon);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const field of [query, continuation]) {
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        search();
      }
    });
  }
  const examples = document.getElementById("examples");
  for (const [number, example] of service.examples.entries()) {
    const text = example.query.trim().replace(/\s+/g, " ");
    const end = text.length > 48 ? `\u2026${text.slice(-48)}` : text || `${number + 1}`;
    const button = Comparison.el("button", { type: "button", class: "example", title: example.query }, end);
    button.addEventListener("click", () => {
      query.value = example.query;
      continuation.value = example.continuation || "";
      search();
    });
    examples.append(button);
  }
  examples.hidden = !service.examples.length;
  query.focus();
})();
