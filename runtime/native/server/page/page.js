// The form, and what its buttons do.
const past = new Past();
const known = new Map();  // models by name
let running = null;       // what cancels the generation under way

// --- the form ---

const fieldOf = { model: "model", prompt: "prompt", size: "size", nfe: "nfe", seed: "seed", partial_images: "partials" };

function fail(error) {
  if (error.status === 401) {
    $("access").hidden = false;
    $("key").focus();
  }
  $("error").textContent = error.message;
  $("error").hidden = false;
  const field = $(fieldOf[error.field] ?? "");
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
}

function forgive() {
  $("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

// Sizes of about the usual number of pixels, the usual one first, and the largest.
function sizesOf({ width, height, multiple }) {
  const fit = (side, { min, max }) => Math.min(max, Math.max(min, Math.round(side / multiple) * multiple));
  const area = width.usual * height.usual;
  const sizes = new Map([[`${width.usual}x${height.usual}`, "usual"]]);
  for (const [x, y] of [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]]) {
    const size = `${fit(Math.sqrt((area * x) / y), width)}x${fit(Math.sqrt((area * y) / x), height)}`;
    if (!sizes.has(size)) sizes.set(size, x === y ? "square" : x > y ? "landscape" : "portrait");
  }
  if (!sizes.has(`${width.max}x${height.max}`)) sizes.set(`${width.max}x${height.max}`, "largest");
  return sizes;
}

function option(value, text) {
  const one = document.createElement("option");
  one.value = value;
  one.textContent = text;
  return one;
}

// Sets the size, and shows both sides where it is not one of the list.
function choose(size) {
  const listed = [...$("size").options].some((one) => one.value === size);
  $("size").value = listed ? size : "other";
  [$("width").value, $("height").value] = size.split("x");
  $("sides").hidden = listed;
}

function limit(id, { min, max }, step = 1) {
  Object.assign($(id), { min, max, step });
}

// The limits of the chosen model. What was chosen before stays where it fits.
function choosing() {
  const model = known.get($("model").value);
  if (!model) return;
  const { width, height, nfe, multiple } = model;
  const before = $("size").value;
  const sizes = [...sizesOf(model)].map(([size, kind]) => option(size, `${size.replace("x", " × ")}  ${kind}`));
  $("size").replaceChildren(...sizes, option("other", "other…"));
  choose([...$("size").options].some((one) => one.value === before && before !== "other") ? before : `${width.usual}x${height.usual}`);
  limit("width", width, multiple);
  limit("height", height, multiple);
  limit("nfe", nfe);
  limit("partials", model.partial_images);
  $("partials-hint").textContent = `0 to ${model.partial_images.max}, on the way`;
  if (!($("nfe").value >= nfe.min && $("nfe").value <= nfe.max)) $("nfe").value = nfe.usual;
  $("nfe-hint").textContent = `1 to ${nfe.max}; ${nfe.usual} is usual`;
  const range = ({ min, max }) => `${min} to ${max}`;
  const sides = range(width) === range(height) ? range(width) : `${range(width)} × ${range(height)}`;
  $("limits").textContent = `${sides} px, multiples of ${multiple}`;
  $("about").textContent = `${model.bundle} on ${model.backend}`;
}

// Fills the list of models; where the server is not ready, again after as long as it says.
async function load() {
  try {
    for (const model of await models()) known.set(model.id, model);
  } catch (error) {
    fail(error);
    if (error.status === 503 || error.status === 0) setTimeout(load, 1000 * (error.wait || 3));
    return;
  }
  forgive();
  $("access").hidden = true;
  $("model").replaceChildren(...[...known.keys()].map((id) => option(id, id)));
  choosing();
}

function fields() {
  const size = $("size").value === "other" ? `${$("width").value}x${$("height").value}` : $("size").value;
  const nfe = $("nfe").value === "" ? undefined : Number($("nfe").value);
  return { model: $("model").value || undefined, prompt: $("prompt").value, size: size || undefined, nfe,
    seed: $("seed").value.trim() };
}

// --- generating ---

function busy(on) {
  document.body.classList.toggle("busy", on);
  $("generate").disabled = on;
  $("cancel").hidden = !on;
}

async function generate() {
  if (running) return;
  forgive();
  running = new AbortController();
  const began = performance.now();
  const tick = () => { $("clock").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`; };
  const clock = setInterval(tick, 100);
  const wanted = Number($("partials").value);
  const partials = [];
  busy(true);
  stage.begin();
  $("frame").scrollIntoView({ block: "nearest" });
  $("status").textContent = "Generating";
  try {
    const made = await generation(fields(), wanted, (partial) => {
      partials.push(partial);
      stage.add(partial.blob, levelOf(partial.sigma));
      $("status").textContent = `Partial image ${partials.length} of ${wanted}`;
    }, running.signal);
    const entry = { ...made, partials };
    (await past.add(entry)).forEach(release);
    stage.show(entry);
    $("status").textContent = "Done";
    list(past);
  } catch (error) {
    stage.restore();
    const cancelled = error.name === "AbortError";
    $("status").textContent = cancelled ? "Cancelled" : "";
    if (!cancelled) fail(error);
  } finally {
    clearInterval(clock);
    $("clock").textContent = "";
    running = null;
    busy(false);
  }
}

// The same noise again: all as it was for this image, and the seed stays in the form for the next one.
function again() {
  const { model, prompt, size, nfe, seed } = stage.shown;
  if (known.has(model)) $("model").value = model;
  choosing();
  $("prompt").value = prompt;
  $("nfe").value = nfe;
  $("seed").value = seed;
  choose(size);
  generate();
}

async function copying(button, text) {
  const label = button.textContent;
  try {
    await copy(text);
    button.textContent = "Copied";
    $("status").textContent = "Copied";
  } catch {
    $("status").textContent = "This browser gives the page no clipboard";
  }
  button.disabled = true;
  setTimeout(() => { button.textContent = label; button.disabled = false; }, 1200);
}

$("form").onsubmit = (event) => { event.preventDefault(); generate(); };
$("access").onsubmit = (event) => {
  event.preventDefault();
  access.use($("key").value.trim());
  load();
};
$("model").onchange = choosing;
$("size").onchange = () => { $("sides").hidden = $("size").value !== "other"; };
$("draw").onclick = () => { $("seed").value = ""; $("seed").focus(); };
$("cancel").onclick = () => running?.abort();
$("again").onclick = again;
$("curl").onclick = () => copying($("curl"), curlOf(stage.shown));
$("python").onclick = () => copying($("python"), pythonOf(stage.shown));
$("clear").onclick = async () => {
  past.entries.filter((entry) => entry !== stage.shown).forEach(release);
  await past.clear();
  list(past);
  $("prompt").focus();
};
document.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
  if (event.key === "Escape") running?.abort();
};

await past.open();
list(past);
await load();
