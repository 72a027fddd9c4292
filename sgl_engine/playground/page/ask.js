// Talks to the server: what there is to choose from, and questions, whose answers come piece by piece.

const KEY = "sgl-key"; // kept for this tab only

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function sent(path, options = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
    if (answer.status !== 401) return answer;
    await askForKey();
  }
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, document.getElementById("key").value.trim());
      done();
    }, { once: true });
  });
}

// Waits until the models are loaded.
export async function setup(query) {
  for (;;) {
    const answer = await sent(`/playground/setup${query}`);
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error.message);
    if (!said.loading) return said;
    await new Promise((done) => setTimeout(done, 500));
  }
}

// Yields events; an error of the server's is thrown with its own words.
export async function* ask(body, signal) {
  const answer = await sent("/playground/ask", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line.slice("data: ".length));
      if (event.event === "error") throw new Error(event.message);
      yield event;
    }
  }
}

// The page's state as the query of a link; what is as by default is left out.
export function toQuery(state, usual) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (JSON.stringify(value) === JSON.stringify(usual[name])) continue;
    query.set(name, name === "cover" ? value.map((box) => box.map((edge) => Math.round(1000 * edge)).join(",")).join(";") : value);
  }
  const text = query.toString();
  return text && `?${text}`;
}
