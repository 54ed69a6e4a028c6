"use strict";
// One query, both lists, and the lines between them. Text is only ever put in as text, never as markup.
const Comparison = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function el(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") node.className = value;
      else node.setAttribute(key, value === true ? "" : String(value));
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function shape(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
    return node;
  }

  function signed(value, digits = 2) {
    const text = Math.abs(value).toFixed(digits);
    return `${value < 0 && Number(text) !== 0 ? "\u2212" : "+"}${text}`;
  }

  function plain(value, digits = 2) {
    return value.toFixed(digits).replace("-", "\u2212");
  }

  function tone(value) {
    return value > 0 ? "good" : value < 0 ? "bad" : "";
  }

  // ------------------------------------------------------------------------------------------- passages

  function marked(segments) {
    return segments.map(([mark, text]) =>
      mark ? el("mark", { class: `in-${mark}`, title: `also in the ${mark}` }, text) : document.createTextNode(text)
    );
  }

  // How much a passage helps, as a bar from the middle: right helps, left harms.
  function bar(gain, most) {
    const share = (50 * Math.abs(gain)) / (most || 1);
    const drawing = shape("svg", { class: "gain-bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
    drawing.append(
      shape("rect", { class: tone(gain), x: gain < 0 ? 50 - share : 50, y: 1, width: share, height: 6 }),
      shape("line", { class: "middle", x1: 50, x2: 50, y1: 0, y2: 8 })
    );
    return drawing;
  }

  function gainOf(passage, query, most, best) {
    if (passage.gain === null) return null;
    const title =
      `log-likelihood of the ${query.scored.of} behind this passage: ${plain(passage.log_likelihood)} nats; ` +
      `without a passage: ${plain(query.scored.no_passage)}`;
    return el(
      "span",
      { class: "gain", title },
      bar(passage.gain, most),
      el("span", { class: `figure ${tone(passage.gain)}` }, `LM ${signed(passage.gain)}`),
      passage.gain === best ? el("span", { class: "badge best", title: "of all passages shown for this query" }, "LM\u2019s best") : null
    );
  }

  function passageCard(side, place, query, scale) {
    const passage = query.passages[place.passage];
    const named = [passage.title, ...passage.extra].filter(Boolean).join(" \u00b7 ");
    const text = el("div", { class: `text${query.code ? " code" : ""}` }, ...marked(passage.text));
    const more = el("button", { type: "button", class: "more", tabindex: -1, "aria-expanded": "false" }, "Show all");
    const card = el(
      "li",
      { class: `passage ${place.kind}`, tabindex: place.rank === 1 ? 0 : -1, "data-side": side, "data-passage": place.passage },
      el(
        "div",
        { class: "head" },
        el("span", { class: "rank" }, String(place.rank)),
        el("span", { class: "similarity", title: "similarity of query and passage" }, plain(place.similarity, 3)),
        el("span", { class: `badge ${place.kind}` }, place.words),
        gainOf(passage, query, scale.most, scale.best)
      ),
      el("div", { class: "name" }, el("span", { class: "id" }, passage.id), named ? ` \u00b7 ${named}` : ""),
      text,
      more
    );
    more.addEventListener("click", () => toggleText(card));
    return card;
  }

  function toggleText(card, open = !card.classList.contains("open")) {
    card.classList.toggle("open", open);
    const more = card.querySelector(".more");
    more.setAttribute("aria-expanded", String(open));
    more.textContent = open ? "Show less" : "Show all";
    redraw(card.closest(".query"));
  }

  // Only a text that is cut has a button that opens it.
  function measure(card) {
    const text = card.querySelector(".text");
    if (!card.classList.contains("open")) card.classList.toggle("cut", text.scrollHeight > text.clientHeight + 2);
  }

  // --------------------------------------------------------------------------------------------- queries

  function list(side, name, query, scale) {
    return el(
      "section",
      { class: `list ${side}` },
      el("h4", {}, side === "base" ? "Base " : "Tuned ", el("span", { class: "soft" }, name)),
      el("ol", { "aria-label": `${side}: ${name}` }, ...query[side].map((place) => passageCard(side, place, query, scale)))
    );
  }

  function figures(query) {
    const parts = [
      el("span", {}, `overlap@${query.k} `, el("b", {}, plain(query.overlap))),
      el("span", {}, "RBO ", el("b", {}, plain(query.rbo))),
      el("span", {}, "Kendall\u2019s \u03c4 ", el("b", {}, signed(query.tau))),
      el("span", { class: query.first_kept ? "" : "changed" }, query.first_kept ? "same first passage" : "another first passage"),
    ];
    if (query.scored) {
      const { base, tuned, gain, tokens, of } = query.scored;
      parts.push(
        el(
          "span",
          { class: "lm", title: `nats that the first passage adds to the log-likelihood of the ${of} (${tokens} tokens)` },
          query.first_kept ? "LM, first passage: " : `LM, first passage: base ${signed(base)}, tuned ${signed(tuned)}: `,
          query.first_kept ? `${signed(base)} nats` : el("b", { class: tone(gain) }, `${signed(gain)} nats`)
        )
      );
    }
    if (query.unscored) parts.push(el("span", { class: "soft" }, `not scored by the LM: ${query.unscored}`));
    return el("p", { class: "figures" }, ...parts);
  }

  // A long text scrolls, and so it can be reached by keyboard.
  function asked(name, text, query) {
    const box = el("div", { class: `asked${query.code ? " code" : ""}`, tabindex: 0, role: "group", "aria-label": name }, text);
    return el("div", { class: name === "query" ? "given" : "follows" }, el("span", { class: "soft" }, name), box);
  }

  function queryCard(query, names, title) {
    const gains = query.passages.map((passage) => passage.gain).filter((gain) => gain !== null);
    const scale = { most: Math.max(...gains.map(Math.abs), 0), best: gains.length ? Math.max(...gains) : null };
    const lines = shape("svg", { class: "joins", "aria-hidden": "true" });
    const card = el(
      "article",
      { class: "query", tabindex: -1, "aria-label": title },
      el("header", {}, el("h3", {}, title), query.document ? el("span", { class: "soft" }, `from ${query.document}`) : null),
      el("div", { class: "texts" }, asked("query", query.query, query), query.continuation ? asked("what really follows", query.continuation, query) : null),
      figures(query),
      el("div", { class: "lists" }, list("base", names.base, query, scale), lines, list("tuned", names.tuned, query, scale))
    );
    card.joins = query.joins;
    card.addEventListener("mouseover", (event) => link(card, event.target.closest(".passage")));
    card.addEventListener("mouseleave", () => link(card, document.activeElement.closest(".passage")));
    card.addEventListener("focusin", (event) => link(card, event.target.closest(".passage")));
    card.addEventListener("focusout", () => link(card, null));
    card.addEventListener("keydown", (event) => moveInside(card, event));
    return card;
  }

  // A query's end is what stands right before the continuation: that is what is in view.
  function settle(card) {
    if (!card.settled) for (const box of card.querySelectorAll(".given .asked")) box.scrollTop = box.scrollHeight;
    card.settled = true;
    for (const passage of card.querySelectorAll(".passage")) measure(passage);
    redraw(card);
  }

  // ------------------------------------------------------------------------------------------ the lines

  function curve(width, from, to) {
    return `M0,${from} C${width / 2},${from} ${width / 2},${to} ${width},${to}`;
  }

  function redraw(card) {
    const drawing = card && card.querySelector(".joins");
    if (!drawing) return;
    const frame = drawing.getBoundingClientRect();
    drawing.replaceChildren();
    if (!frame.width) return; // lists under each other have no lines
    const sides = ["base", "tuned"].map((side) => [...card.querySelectorAll(`.passage[data-side="${side}"]`)]);
    const height = (passage) => {
      const head = passage.querySelector(".head").getBoundingClientRect();
      return (head.top + Math.min(head.height, 24) / 2 - frame.top).toFixed(1);
    };
    drawing.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    for (const [base, tuned, kind] of card.joins) {
      const from = sides[0][base];
      const ends = [height(from), height(sides[1][tuned])];
      const line = shape("path", { class: `join ${kind}`, d: curve(frame.width, ...ends), "data-passage": from.dataset.passage });
      const dots = [0, frame.width].map((x, end) => shape("circle", { class: `end ${kind}`, cx: x, cy: ends[end], r: 3 }));
      drawing.append(line, ...dots);
    }
    link(card, card.linked || null);
  }

  function link(card, passage) {
    card.linked = passage;
    const name = passage ? passage.dataset.passage : null;
    for (const node of card.querySelectorAll("[data-passage]")) node.classList.toggle("linked", node.dataset.passage === name);
    card.querySelector(".joins").classList.toggle("dim", Boolean(card.querySelector(".join.linked")));
  }

  // ------------------------------------------------------------------------------------------- the keys

  function moveInside(card, event) {
    const passage = event.target.closest(".passage");
    if (!passage || event.target !== passage || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = [...passage.parentElement.children];
    const at = own.indexOf(passage);
    const across = passage.dataset.side === "base" ? "tuned" : "base";
    const others = [...card.querySelectorAll(`.passage[data-side="${across}"]`)];
    const same = others.find((other) => other.dataset.passage === passage.dataset.passage);
    const steps = {
      ArrowDown: () => own[at + 1],
      ArrowUp: () => own[at - 1],
      Home: () => own[0],
      End: () => own[own.length - 1],
      ArrowRight: () => (across === "tuned" ? same || others[Math.min(at, others.length - 1)] : null),
      ArrowLeft: () => (across === "base" ? same || others[Math.min(at, others.length - 1)] : null),
    };
    if (event.key === "Enter" || event.key === " ") toggleText(passage);
    else if (steps[event.key]) focusPassage(steps[event.key]());
    else return;
    event.preventDefault();
  }

  // Of each list one passage is in the order of the Tab key: the one that had the focus last.
  function focusPassage(passage) {
    if (!passage) return;
    for (const other of passage.parentElement.children) other.tabIndex = other === passage ? 0 : -1;
    passage.focus();
  }

  const watched = new ResizeObserver((entries) => {
    for (const entry of entries) settle(entry.target);
  });

  // Cards draw their lines once they have a size, and again whenever that changes.
  function show(place, cards) {
    watched.disconnect();
    place.replaceChildren(...cards);
    for (const card of cards) {
      card.settled = false; // what is put in anew has lost where it was scrolled to
      watched.observe(card);
    }
  }

  return { el, queryCard, show, signed, plain, tone, toggleText };
})();
