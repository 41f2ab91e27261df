// The image that is shown, how it came about, and the list of those before it.
const $ = (id) => document.getElementById(id);
const SMALL = 256;  // pixels: an image with no longer side is enlarged

const urls = new WeakMap();
function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}
function release(entry) {
  for (const blob of [entry.blob, ...(entry.partials ?? []).map((partial) => partial.blob)]) {
    if (urls.has(blob)) URL.revokeObjectURL(urls.get(blob));
    urls.delete(blob);
  }
}

// Shows few pixels as such. Until the new image is there, the one before it stays.
function fill(image, blob, text) {
  image.onload = () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    image.classList.toggle("small", Math.max(width, height) <= SMALL);
    image.style.setProperty("--pixels", `${width}px`);
    image.style.setProperty("--ratio", width / height);
  };
  image.alt = text;
  image.src = urlOf(blob);
  image.hidden = false;
}

function thumbnail(blob, text, pressed, onClick) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = text;
  button.setAttribute("aria-pressed", pressed);
  button.onclick = onClick;
  fill(image, blob, text);
  button.append(image);
  item.append(button);
  return item;
}

function press(list, chosen) {
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-pressed", button === chosen);
}

const levelOf = (sigma) => `Noise level ${sigma.toFixed(2)}`;

const stage = {
  shown: null,  // the entry whose facts and actions are there

  begin() {
    this.before = this.shown;
    $("empty").hidden = true;
    $("result").hidden = true;
    $("strip").replaceChildren();
    $("strip").hidden = true;
  },
  // One more state on the way, the newest in the frame.
  add(blob, text) {
    const strip = $("strip");
    const item = thumbnail(blob, text, true, () => {
      press(strip, item.firstChild);
      fill($("image"), blob, text);
    });
    strip.append(item);
    strip.hidden = strip.children.length < 2;
    item.querySelector("img").addEventListener("load", () => { strip.scrollLeft = strip.scrollWidth; });
    press(strip, item.firstChild);
    fill($("image"), blob, text);
  },
  show(entry) {
    this.shown = entry;
    this.begin();
    for (const { blob, sigma } of entry.partials ?? []) this.add(blob, levelOf(sigma));
    this.add(entry.blob, entry.prompt);
    $("said").textContent = entry.prompt;
    $("facts").replaceChildren(...factsOf(entry).flatMap(([name, value]) => {
      const group = document.createElement("div");
      const [term, data] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      data.textContent = value;
      group.append(term, data);
      return group;
    }));
    $("download").href = urlOf(entry.blob);
    $("download").download = fileOf(entry);
    $("result").hidden = false;
  },
  // Back to what was there, or to the beginning.
  restore() {
    if (this.before) return this.show(this.before);
    this.clear();
  },
  clear() {
    this.shown = null;
    this.begin();
    $("image").hidden = true;
    $("image").removeAttribute("src");
    $("empty").hidden = false;
  },
};

const shortly = (seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`);

function factsOf({ seed, size, nfe, model, timings }) {
  const { total, queue, generate, encode } = timings;
  return [
    ["Seed", seed],
    ["Size", size.replace("x", " × ")],
    ["Evaluations", nfe],
    ["Model", model],
    ["Time", shortly(total)],
    ["Waiting, generating, encoding", [queue, generate, encode].map(shortly).join(", ")],
  ];
}

function list(past) {
  $("past").hidden = past.entries.length === 0;
  $("history").replaceChildren(...past.entries.map((entry) => {
    const item = thumbnail(entry.blob, `${entry.prompt} (seed ${entry.seed})`, entry === stage.shown, () => {
      stage.show(entry);
      press($("history"), item.firstChild);
      $("image").scrollIntoView({ block: "nearest" });
    });
    return item;
  }));
}
