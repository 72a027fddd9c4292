// Wires the page: what a visitor does becomes state, what has changed is asked again, answers are shown.

import { ask, setup, toQuery } from "./ask.js";
import { coverable } from "./stage.js";
import { $, make, showAnswers, showBars, showStage, showTokens, showUncovered, showVersus } from "./view.js";

const REST_MS = 250; // without a move: the slider rests
const ALL = ["small", "large", "ranker", "pair"];
const page = {
  setup: null, state: null, picture: null, shows: "", data: "", salt: "", token: -1,
  dirty: new Set(), // parts of the answer that are not of the present state
  results: blank(), asking: null, uncovered: null,
};

function blank() {
  return { small: null, large: null, ranker: null, pair: null, tokens: null, smallText: "", largeText: "", score: null };
}

function show() {
  showAnswers(page);
  showStage(page);
  showBars(page);
  showVersus(page);
  showTokens(page, chooseToken);
  showUncovered(page);
  $("uncover").hidden = !page.state.cover.length;
}

function tell(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

// Asks for what has changed. A newer question ends the one before it.
async function request(...parts) {
  parts.forEach((part) => page.dirty.add(part));
  if (!page.state.ranker) page.dirty.delete("ranker");
  remember();
  if (!page.dirty.size || !page.picture) return;
  page.asking?.abort();
  const mine = (page.asking = new AbortController());
  const alone = page.dirty.has("small") ? null : page.results.pair && page.results.pair.alone;
  page.results.streaming = false;
  tell("");
  $("ask").textContent = "Asking …";
  show();
  try {
    const body = { state: page.state, data: page.state.picture ? "" : page.data, parts: [...page.dirty], salt: page.salt, alone };
    for await (const event of ask(body, mine.signal)) {
      if (mine.signal.aborted) return;
      take(event);
      show();
    }
    say();
  } catch (error) {
    if (!mine.signal.aborted) tell(error instanceof TypeError ? "The server cannot be reached. Is it running?" : error.message);
  } finally {
    if (page.asking === mine) $("ask").textContent = "Ask";
  }
}

function take(event) {
  const { results } = page;
  if (event.event === "score") Object.assign(results, { score: event.score, smallText: "" });
  else if (event.event === "small_text") results.smallText += event.text;
  else if (event.event === "large_text") {
    // What was there is of the settings before; the first new piece takes its place.
    if (page.dirty.has("large") && !results.streaming) results.largeText = "";
    results.streaming = true;
    results.largeText += event.text;
  } else if (event.event === "done") page.dirty.delete(event.part);
  else {
    results[event.event] = event;
    if (event.event === "small") results.smallText = event.text;
    if (event.event === "large") Object.assign(results, { largeText: event.text, streaming: false });
  }
}

function say() {
  const { smallText, largeText, score } = page.results;
  if (score === null) return;
  const sure = score >= page.state.t;
  $("said").textContent = sure
    ? `The small model is sure: ${smallText}, score ${score.toFixed(2)}.`
    : `The small model says ${smallText}, score ${score.toFixed(2)}, and is not sure. The large model says ${largeText}.`;
}

// A new question or picture: nothing of the last one counts.
function askAnew() {
  page.salt = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2).padEnd(16, "0");
  const { picture, q, cover } = page.state;
  const about = JSON.stringify([picture || page.data, q]);
  if (page.uncovered?.about !== about) page.uncovered = null;
  if (!cover.length) page.uncovered = { about, results: null };
  else if (page.uncovered && !page.uncovered.results) page.uncovered.results = page.results;
  page.results = blank();
  page.token = -1;
  page.dirty.clear();
  return request(...ALL);
}

function remember() {
  history.replaceState(null, "", location.pathname + toQuery(page.state, page.setup.default));
}

function chooseToken(number) {
  page.token = number;
  if (number >= 0 && !page.results.tokens) request("tokens");
  else show();
}

function loadPicture(url, shows) {
  return new Promise((done, fail) => {
    const picture = new Image();
    picture.onload = () => {
      Object.assign(page, { picture, shows });
      done();
    };
    picture.onerror = () => fail(new Error("This file is no picture that the browser can show. Choose a PNG, JPEG or WebP."));
    picture.src = url;
  });
}

async function choose(name, question = null) {
  const { shows, questions } = page.setup.gallery.find((each) => each.name === name);
  await loadPicture(`/playground/pictures/${name}.png`, shows);
  Object.assign(page.state, { picture: name, q: question || questions[0], cover: [] });
  showChoices();
  askAnew();
}

function showChoices() {
  $("q").value = page.state.q;
  for (const button of $("gallery").children) button.setAttribute("aria-pressed", String(button.dataset.name === page.state.picture));
  const chosen = page.setup.gallery.find(({ name }) => name === page.state.picture);
  const ask = (question) => () => { page.state.q = $("q").value = question; askAnew(); };
  $("questions").replaceChildren(...(chosen ? chosen.questions : []).map((question) => make("button", { type: "button", text: question, onclick: ask(question) })));
}

async function chooseOwn(file) {
  if (!file) return;
  const data = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(file);
  });
  try {
    await loadPicture(data, `Your picture ${file.name}`);
  } catch (error) {
    tell(error.message); // and the picture before it stays
    return;
  }
  page.data = data;
  Object.assign(page.state, { picture: "", cover: [] });
  showChoices();
  askAnew();
}

function wirePicture() {
  const thumbs = page.setup.gallery.map(({ name, shows }) => make("button", { type: "button", "data-name": name, "aria-pressed": "false", onclick: () => choose(name) },
    make("img", { src: `/playground/pictures/${name}.png`, alt: shows })));
  $("gallery").replaceChildren(...thumbs);
  $("own").onchange = () => chooseOwn($("own").files[0]);
  addEventListener("paste", (event) => chooseOwn([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  $("stage").ondragover = (event) => event.preventDefault();
  $("stage").ondrop = (event) => {
    event.preventDefault();
    chooseOwn(event.dataTransfer.files[0]);
  };
  for (const id of ["heat", "kept"]) {
    $(id).checked = page.state[id];
    $(id).onchange = () => { page.state[id] = $(id).checked; remember(); show(); };
  }
  new ResizeObserver(() => { showStage(page); showVersus(page); }).observe($("stage"));
}

function wireCover() {
  const setCovering = (on) => {
    $("cover").setAttribute("aria-pressed", String(on));
    $("cover-help").hidden = !on;
    $("stage").classList.toggle("covering", on);
    $("canvas").tabIndex = on ? 0 : -1;
    if (on) $("canvas").focus();
    else showStage(page);
  };
  const isOn = () => $("cover").getAttribute("aria-pressed") === "true";
  $("cover").onclick = () => setCovering(!isOn());
  $("uncover").onclick = () => { page.state.cover = page.state.cover.slice(0, -1); askAnew(); };
  coverable($("canvas"), {
    isOn,
    moved: (box) => showStage(page, box),
    made: (box) => { page.state.cover = [...page.state.cover, box.map((edge) => Math.round(1000 * edge) / 1000)]; askAnew(); },
    left: () => { setCovering(false); $("cover").focus(); },
  });
}

function wireSettings() {
  $("k").max = page.setup.layers - 1;
  $("k").min = page.setup.first_layer;
  const affected = { t: ["pair"], keep: ["large", "ranker", "pair"], k: ["large", "ranker", "pair"] };
  for (const [id, parts] of Object.entries(affected)) {
    // While it moves, only what is known already is drawn anew; once it rests, the models are asked.
    let resting = 0;
    $(id).oninput = () => {
      page.state[id] = Number($(id).value);
      parts.forEach((part) => page.dirty.add(part));
      show();
      clearTimeout(resting);
      resting = setTimeout(() => request(...parts), REST_MS);
    };
  }
  for (const id of ["small_hour", "large_hour"]) {
    $(id).value = page.state[id];
    $(id).onchange = () => {
      page.state[id] = Math.max(0, Number($(id).value) || 0);
      request("pair");
    };
  }
  $("ranker").append(...page.setup.rankers.map(({ name }) => make("option", { value: name, text: name })));
  $("ranker").value = page.state.ranker;
  $("ranker").onchange = () => {
    page.state.ranker = $("ranker").value;
    page.results.ranker = null;
    request("ranker");
    show();
  };
  $("form").onsubmit = (event) => {
    event.preventDefault();
    page.state.q = $("q").value;
    askAnew();
  };
  $("copy").onclick = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copied").textContent = page.state.picture ? "Copied." : "Copied. Your own picture is not in it: choose it again there.";
    } catch {
      $("copied").textContent = "The browser keeps pages from copying here; the link is in the address bar.";
    }
  };
}

async function start() {
  try {
    page.setup = await setup(location.search);
  } catch (error) {
    tell(error.message);
    return;
  }
  page.state = page.setup.state;
  $("models").textContent = `${page.setup.small} asks ${page.setup.large}`;
  wirePicture();
  wireCover();
  wireSettings();
  showChoices();
  show();
  const problems = [...page.setup.problems];
  const chosen = page.setup.gallery.find(({ name }) => name === page.state.picture);
  if (chosen) {
    await loadPicture(`/playground/pictures/${chosen.name}.png`, chosen.shows);
    await askAnew();
  } else problems.push("The link is about a picture of its maker's own, which no link holds: choose it again.");
  if (problems.length) tell(problems.join(" "));
}

start();
