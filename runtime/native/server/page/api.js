// What the server is asked, and what it answers.

// The server's sentence about what went wrong. field: of the request, or null. wait: seconds until another try, or 0.
class Refusal extends Error {
  constructor(status, error, wait = 0) {
    super(error.message);
    this.status = status;
    this.field = error.param ?? null;
    this.wait = wait;
  }
}

const KEY = "arcflow-key";
const access = {
  // A page that may keep nothing has the key in memory alone.
  key: (() => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } })(),
  use(key) {
    this.key = key;
    try { sessionStorage.setItem(KEY, key); } catch { /* as above */ }
  },
};

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (access.key) headers.Authorization = `Bearer ${access.key}`;
  let response;
  try {
    response = await fetch(new URL(path, location.href), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { message: "the server cannot be reached" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const error = told?.error ?? { message: `the server answered ${response.status} ${response.statusText}` };
  throw new Refusal(response.status, error, Number(response.headers.get("Retry-After")) || 0);
}

async function models() {
  return (await (await ask("v1/models")).json()).data;
}

// The request's body as text. Seeds go up to 2^64 - 1, which numbers of JavaScript do not: they are strings here.
function bodyOf({ seed, ...fields }) {
  const text = JSON.stringify(fields);
  if (seed === "") return text;
  const value = /^-?\d+$/.test(seed) ? String(BigInt(seed)) : JSON.stringify(seed);
  return `${text.slice(0, -1)},"seed":${value}}`;
}

// What a stream of server-sent events carries: the data of each, read from JSON.
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

const blobOf = (base64) =>
  new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });

// Asks for one image. Gives the blob and the noise level of each partial image to onPartial, and returns {blob, seed, size, model, nfe,
// timings}. Throws Refusal, or AbortError once the signal says so.
async function generation(fields, partials, onPartial, signal) {
  const body = bodyOf({ ...fields, stream: true, partial_images: partials });
  const response = await ask("v1/images/generations", {
    method: "POST", headers: { "Content-Type": "application/json" }, body, signal,
  });
  for await (const event of eventsOf(response.body)) {
    if (event.type === "error") throw new Refusal(0, event.error);
    if (event.type === "image_generation.partial_image") onPartial({ blob: blobOf(event.b64_json), sigma: event.sigma });
    if (event.type === "image_generation.completed") {
      const { size, nfe, timings } = event;
      const model = fields.model ?? event.model;  // by the name that it was asked for: one of several may have others
      const seed = fields.seed === "" ? String(event.seed) : String(BigInt(fields.seed));
      return { blob: blobOf(event.b64_json), prompt: fields.prompt, seed, size, model, nfe, timings };
    }
  }
  throw new Refusal(0, { message: "the connection ended before the image was done" });
}
