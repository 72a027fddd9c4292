// Writes what is known into the page. No requests here.

import { draw } from "./stage.js";

export const $ = (id) => document.getElementById(id);
const percent = (part) => `${Math.round(100 * part)} %`;

export function make(tag, { text, ...given } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// How many tokens the plan would keep: the same rule as the engine's.
export const budget = (state, small) => Math.max(1, Math.floor(small.visual_tokens * state.keep + 1e-9));

// What is kept: as the large model was given it, or, while a slider moves, as it would be.
export function keeps(page) {
  const { small, large } = page.results;
  if (large && !page.dirty.has("large")) return large.kept;
  if (!small || page.dirty.has("small")) return null;
  const count = budget(page.state, small);
  return { ...small.turns, cells: small.turns.cells.map((turn) => Number(turn < count)) };
}

export function showStage(page, draft = null) {
  if (!page.picture) return;
  const { state, results } = page;
  const stale = page.dirty.has("small");
  const heat = page.token >= 0 && results.tokens ? results.tokens.heats[page.token] : results.small && results.small.heat;
  draw($("canvas"), page.picture, {
    heat: state.heat && !stale ? heat : null,
    keeps: state.kept && !stale ? keeps(page) : null,
    covers: draft ? [...state.cover, draft] : state.cover,
  });
  $("canvas").setAttribute("aria-label", describe(page));
}

function describe(page) {
  const { small } = page.results;
  const covered = page.state.cover.length ? ` ${page.state.cover.length} part(s) of it are covered.` : "";
  const looked = small && !page.dirty.has("small") ? ` ${focusText(small.focus)} Kept for the large model: ${budget(page.state, small)} of ${small.visual_tokens} visual tokens.` : "";
  return `${page.shows}.${covered}${looked}`;
}

function focusText([x0, y0, x1, y1]) {
  return `The small model looked most at the area from ${percent(x0)} to ${percent(x1)} across and ${percent(y0)} to ${percent(y1)} down.`;
}

function put(id, text) {
  const place = $(id);
  place.textContent = text || "…";
  place.classList.toggle("long", text.length > 24);
}

export function showAnswers(page) {
  const { state, results, dirty } = page;
  const { small, large } = results;
  put("small-text", results.smallText);
  put("large-text", results.largeText);
  $("small-card").setAttribute("aria-busy", dirty.has("small"));
  $("large-card").setAttribute("aria-busy", dirty.has("large"));
  const score = results.score;
  const sure = score !== null && score >= state.t;
  $("score-bar").style.width = `${100 * (score || 0)}%`;
  $("meter").setAttribute("aria-valuenow", (score || 0).toFixed(2));
  $("threshold-mark").style.left = `${100 * state.t}%`;
  if (score === null) {
    $("small-verdict").textContent = "…";
    $("large-verdict").textContent = "…";
  } else {
    $("small-verdict").textContent = sure ? `Score ${score.toFixed(2)}: sure enough. Done.` : `Score ${score.toFixed(2)}: not sure. The large model is asked.`;
    if (large && !dirty.has("large")) {
      const says = large.agrees ? "says the same" : "says something else";
      $("large-verdict").textContent = sure ? `Not asked. It ${large.agrees ? "would have said the same" : "would have said this"}.` : large.agrees ? "Agrees with the small one." : "Overrules the small one.";
      $("large-card").dataset.says = says;
    }
  }
  $("small-card").classList.toggle("unused", score !== null && !sure);
  $("large-card").classList.toggle("unused", sure);
  $("small-badge").hidden = score === null || !sure;
  $("large-badge").hidden = score === null || sure;
  showSliders(page, small);
}

function showSliders({ state, setup, results, dirty }, small) {
  $("t-out").textContent = state.t.toFixed(2);
  $("keep-out").textContent = percent(state.keep);
  $("k-out").textContent = `${state.k} of ${setup.layers}`;
  const large = results.large;
  const used = large && !dirty.has("large") ? large : null;
  if (used && used.layer !== state.k && used.kept_tokens < used.visual_tokens) {
    $("large-hint").textContent = `This model cannot drop tokens there; K is ${used.layer}.`;
  } else if (small && !dirty.has("small")) {
    const kept = used ? used.kept_tokens : budget(state, small);
    const rest = setup.layers - state.k;
    $("large-hint").textContent = kept < small.visual_tokens
      ? `${kept} of ${small.visual_tokens} visual tokens in the last ${rest} of ${setup.layers} layers.`
      : `All ${small.visual_tokens} visual tokens in all layers.`;
  }
  $("focus").textContent = small && !dirty.has("small") ? focusText(small.focus) : "";
  for (const id of ["t", "keep", "k"]) $(id).value = state[id];
}

export function showUncovered({ state, uncovered }) {
  const before = state.cover.length && uncovered?.results;
  $("uncovered").hidden = !before;
  if (before) $("uncovered").textContent = `Before anything was covered: ${before.smallText} (small), ${before.largeText} (large).`;
}

export function showBars(page) {
  const { pair } = page.results;
  $("bars").setAttribute("aria-busy", page.dirty.has("pair"));
  if (!pair) return;
  $("bars").replaceChildren(...pair.rows.map(barRow));
  const text = JSON.stringify(pair.report, null, 2);
  $("report").textContent = text;
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  $("alone-hint").textContent = `Alone, on everything, the large model says: ${pair.alone.text}. Measured on this machine just now, as on a picture never seen; one run each.`;
}

function barRow(row) {
  const most = Math.max(row.small + row.large + row.rest, row.alone) || 1;
  const part = (name, value) => {
    const piece = make("i", { className: name });
    piece.style.width = `${(100 * value) / most}%`;
    return piece;
  };
  const line = (label, pieces, text) => make("div", { className: "line" },
    make("span", { text: label }), make("span", { className: "bar", "aria-hidden": "true" }, ...pieces), make("span", { text }));
  const share = row.share === null ? "" : `${row.share.toFixed(2)} of it`;
  return make("div", { className: "row" },
    make("h3", {}, make("span", { text: row.name }), make("span", { text: share })),
    line("This pair", [part("s", row.small), part("l", row.large), part("a", row.rest)], row.ours_text),
    line("Large alone", [part("a", row.alone)], row.alone_text));
}

export function showVersus(page) {
  const { ranker, large } = page.results;
  const ready = page.state.ranker && ranker && large && page.picture && !page.dirty.has("small");
  $("versus").hidden = !ready;
  const chosen = page.setup.rankers.find(({ name }) => name === page.state.ranker);
  $("ranker-does").textContent = chosen ? chosen.does : "Pick one: it gets the same number of tokens at the same layer.";
  if (!ready) return;
  for (const [id, shown, who] of [["ours", large, "Small model's attention (ours)"], ["theirs", ranker, ranker.name]]) {
    draw($(id), page.picture, { keeps: shown.kept, covers: page.state.cover });
    $(id).setAttribute("aria-label", `What ${who} keeps: ${shown.kept_tokens} of ${shown.visual_tokens} visual tokens`);
    $(`${id}-text`).replaceChildren(make("b", { text: shown.text }), ` ${who}, ${shown.kept_tokens} of ${shown.visual_tokens} tokens from layer ${shown.layer} on`);
  }
}

export function showTokens(page, choose) {
  const { small } = page.results;
  const place = $("tokens");
  place.hidden = !small || page.dirty.has("small");
  if (place.hidden) return;
  const button = (number, text) => make("button", {
    type: "button", text, "aria-pressed": String(page.token === number), onclick: () => choose(number),
  });
  const written = (token) => token.trim() || (token ? "␣" : "end");
  place.replaceChildren(make("span", { className: "hint", text: "Heat of" }), button(-1, "whole answer"),
    ...small.tokens.map((token, index) => button(index, written(token))));
}
