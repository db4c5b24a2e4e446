"use strict";
// The tabs of an inspection: showInspection(element, what roots.inspection.inspect_text returns).

function showInspection(root, found) {
  const words = found.vocabulary;
  const word = (id) => visible(words[id] ?? `#${id}`);
  const named = (pairs) => pairs.map(([id, share]) => `${fixed(share, 4)}  ${word(id)}`).join("\n");
  const parts = [
    ["Losses", () => showLosses(found, word, named)],
    ["Lenses", () => showLenses(found, word, named)],
    ["Attention", () => showAttention(found, word)],
    ["Heads", () => showHeads(found.heads)],
    ["Residual stream", () => showResidual(found.residual)],
    ["Experts", () => showExperts(found, word)],
    ["Embedding", () => showNearest(found, word)],
    ["fp16", () => showOverflow(found.overflow)],
  ];
  const experts = found.experts.length > 0;
  root.replaceChildren(tabs(parts.filter(([name]) => experts || name !== "Experts")));
}

// What the findings are of, where the shown row is not all.
function readNote(found) {
  const { data, windows } = found.read;
  if (data === undefined) return null;
  return note(`Means are of ${windows} windows of ${data}; the tokens shown are the first window.`);
}

function showLosses(found, word, named) {
  const { of_tokens, predictions, mean, perplexity, tokens } = found.losses;
  const most = Math.max(1, ...of_tokens.filter((each) => each !== null));
  const spans = found.tokens.map((id, at) => {
    const expected = () => named(predictions[at - 1]);
    return lossSpan(at, found.vocabulary[id], of_tokens[at], { most, none: "not predicted", expected });
  });
  const last = predictions[predictions.length - 1];
  return [
    element("p", {}, `${number(mean)} nats per token, perplexity ${number(perplexity)}, of ${tokens.toLocaleString("en")} tokens.`),
    readNote(found),
    note("The redder a token, the less it was expected; beneath the pointer what was."),
    element("div", { class: "text" }, ...spans),
    element("h2", {}, "What would come next"),
    table(["probability", "token"], last.map(([id, share]) => [fixed(share, 4), word(id)])),
  ];
}

// A token, the redder the nearer its loss is to `most`; beneath the pointer the loss, and the lines of `expected()`.
// Where there is no loss, `none` says why.
function lossSpan(at, text, loss, { most, none, expected }) {
  const span = element("span", { "data-token": at }, text);
  if (loss !== null) span.style.background = shade(loss / most, "229 57 53");
  return tip(span, () => {
    const name = `token ${at}: ${visible(text)}`;
    if (loss === null) return `${name}\n${none}`;
    return `${name}\n${number(loss)} nats, p ${number(Math.exp(-loss))}\n\nexpected here:\n${expected()}`;
  });
}

function showLenses(found, word, named) {
  const kinds = ["logit", "tuned"].filter((kind) => found.lenses[kind] !== null);
  const place = element("div");
  const draw = (kind) => place.replaceChildren(element("div", {}, ...lensParts(found, kind, word, named)));
  draw(kinds[0]);
  const names = { logit: "logit lens", tuned: "tuned lens" };
  return [
    note(
      "What the model would predict behind each token if it ended there: behind the embedding (0), and behind each " +
        "block. The logit lens gives the stream to the head as it is; the tuned lens, where one was fitted, through a " +
        "map trained for that place.",
    ),
    kinds.length > 1 ? choice(kinds.map((kind) => [kind, names[kind]]), draw) : element("p", {}, names[kinds[0]]),
    place,
  ];
}

function lensParts(found, kind, word, named) {
  const { losses, divergences, predictions } = found.lenses[kind];
  const shown = predictions[0].length;
  const head = element("tr", {}, element("th", {}, ""), ...found.tokens.slice(0, shown).map((id) => element("th", {}, word(id))));
  const rows = predictions.map((row, place) => {
    const cells = row.map((likeliest, at) => {
      const [id, share] = likeliest[0];
      const cell = element("td", { class: "shade", style: { background: shade(share) } }, word(id));
      return tip(cell, () => `behind ${place} blocks, after token ${at}\n${named(likeliest)}`);
    });
    return element("tr", {}, element("th", {}, String(place)), ...cells);
  });
  const most = Math.max(...losses.map((each) => each ?? 0), 1e-9);
  const curve = losses.map((loss, place) => [
    String(place),
    number(loss),
    bar((loss ?? 0) / most),
    number(divergences[place]),
  ]);
  return [
    element("div", { class: "scroll" }, element("table", { class: "lens" }, head, ...rows.reverse())),
    cut(found, shown),
    element("h2", {}, "By place"),
    table(["blocks", "loss, nats", "", "divergence from the model, nats"], curve),
  ];
}

function cut(found, shown) {
  const all = found.tokens.length;
  return all > shown ? note(`The first ${shown} of ${all} tokens; --tokens shows more.`) : null;
}

function showAttention(found, word) {
  const names = new Map();
  for (const { kind, block, head } of found.heads.named) {
    const key = `${block}.${head}`;
    names.set(key, [...(names.get(key) ?? []), kind]);
  }
  const large = element("div", { class: "large" });
  const enlarge = (block, head) => {
    const rows = found.attention[block][head];
    const scale = Math.max(4, Math.floor(560 / rows.length));
    const canvas = drawTriangle(rows, 1000, scale);
    tip(canvas, (event) => {
      const cell = canvas.clientWidth / rows.length;
      const query = Math.floor(event.offsetY / cell);
      const key = Math.floor(event.offsetX / cell);
      const weight = rows[query]?.[key];
      if (weight === undefined) return null;
      return `token ${query} ${word(found.tokens[query])}\nlooks at ${key} ${word(found.tokens[key])}: ${weight / 1000}`;
    });
    large.replaceChildren(element("h2", {}, `Block ${block}, head ${head}`), canvas);
  };
  enlarge(0, 0);
  const blocks = found.attention.flatMap((heads, block) => [
    element("h2", {}, `Block ${block}`),
    element("div", { class: "maps" }, ...heads.map((rows, head) => {
      const kinds = names.get(`${block}.${head}`) ?? [];
      const caption = element("figcaption", {}, [`head ${head}`, ...kinds].join(", "));
      return element("figure", { onclick: () => enlarge(block, head) }, drawTriangle(rows, 1000, 2), caption);
    })),
  ]);
  return [
    note("Rows are tokens that look, columns those that are looked at; a click enlarges a head."),
    cut(found, found.attention[0][0].length),
    large,
    ...blocks,
  ];
}

function showHeads(heads) {
  const meanings = {
    induction: "looks behind the last occurrence of its token",
    previous: "looks at the token before",
    duplicate: "looks at the last occurrence of its token",
    first: "looks at the first token, as a head that does nothing",
  };
  const [first, again] = heads.losses;
  const grids = Object.entries(heads.scores).flatMap(([kind, rows]) => [
    element("h2", {}, `${kind}: ${meanings[kind]}`),
    table(
      ["", ...rows[0].map((_, head) => `head ${head}`)],
      rows.map((row, block) => [
        `block ${block}`,
        ...row.map((score) => element("td", { class: "shade", style: { background: shade(score) } }, fixed(score, 2))),
      ]),
    ),
  ]);
  const named = heads.named.map(({ kind, block, head, score }) => [kind, `block ${block} head ${head}`, fixed(score, 4)]);
  return [
    note(
      `Mean attention on ${heads.rows} sequences of ${heads.length} random tokens that come twice. They cost ` +
        `${number(first)} nats each, and ${number(again)} when they come again.`,
    ),
    named.length ? table(["kind", "head", "score"], named) : note("No head is of any of these kinds."),
    ...grids,
  ];
}

function showResidual(residual) {
  const most = Math.max(...residual.norms.map((each) => each ?? 0), 1e-9);
  const norms = residual.norms.map((norm, place) => [String(place), number(norm), bar((norm ?? 0) / most)]);
  const shared = residual.embedding_share !== null;
  const share = (value) => (shared ? [fixed(value, 4), bar(Math.abs(value), value < 0)] : []);
  const rows = residual.branches.map((each) => [
    `block ${each.block} ${each.branch}`,
    number(each.norm),
    number(each.relative),
    ...share(each.share),
  ]);
  const start = shared ? [["embedding", "", "", ...share(residual.embedding_share)]] : [];
  return [
    element("h2", {}, "Length of the stream behind so many blocks"),
    table(["blocks", "mean length", ""], norms),
    element("h2", {}, "What blocks add"),
    note(
      "Relative: over the stream before the block. Share: of what stands behind the last block, along its own " +
        "direction; all shares add up to 1, and orange ones work against it.",
    ),
    table(["", "mean length", "relative", ...(shared ? ["share", ""] : [])], [...start, ...rows]),
  ];
}

function showExperts(found, word) {
  const parts = found.experts.flatMap((row) => {
    const most = Math.max(...row.load);
    const loads = row.load.map((load) =>
      element("td", { class: "shade", style: { background: shade(load / most) } }, `${(100 * load).toFixed(1)}%`),
    );
    const count = row.load.length;
    const spans = row.choices.map((chosen, at) => {
      const colour = `hsl(${(360 * chosen[0]) / count} 70% 50% / .4)`;
      const span = element("span", { style: { background: colour } }, found.vocabulary[found.tokens[at]]);
      return tip(span, () => `token ${at}: ${word(found.tokens[at])}\nexperts ${chosen.join(", ")}`);
    });
    return [
      element("h2", {}, `Block ${row.block}`),
      note(
        `Largest load ${number(row.largest)} times an even one; entropy of the load ${number(row.load_entropy)}, of ` +
          `a token's probabilities ${number(row.entropy)} (1: even). Tokens by their first expert:`,
      ),
      table(row.load.map((_, expert) => `expert ${expert}`), [loads]),
      element("div", { class: "text" }, ...spans),
    ];
  });
  return [readNote(found), ...parts];
}

function showNearest(found, word) {
  const rows = Object.entries(found.nearest).map(([token, others]) => [
    word(token),
    others.map(([id, cosine]) => `${word(id)} ${fixed(cosine, 2)}`).join("   "),
  ]);
  return [note("The other tokens whose vectors have the largest cosine."), table(["token", "nearest"], rows)];
}

function showOverflow({ limit, sites, overflows, close }) {
  const beyond = new Set(overflows);
  const near = new Set(close);
  const verdict = overflows.length
    ? `In fp16 ${overflows.length} of ${sites.length} sites would overflow, first ${overflows[0]}.`
    : `In fp16 nothing would overflow here; ${close.length} sites come within a factor of 4.`;
  const rows = sites.map(({ site, largest, share }) => {
    const size = largest === null ? 1 : Math.log2(1 + largest) / Math.log2(limit);
    const name = element("span", beyond.has(site) ? { class: "beyond" } : {}, site);
    const word = beyond.has(site) ? "overflows" : near.has(site) ? "close" : "";
    return [name, number(largest), bar(size, beyond.has(site) || near.has(site)), number(share), word];
  });
  return [
    element("p", {}, verdict),
    note(`The largest absolute value of every site, in the order in which they are computed; ${limit.toLocaleString("en")} is the largest number of fp16. Bars are logarithmic.`),
    table(["site", "largest", "", "share of the limit", ""], rows),
  ];
}
