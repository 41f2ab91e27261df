// Programs that make an image again, byte for byte.
const fileOf = ({ model, seed }) => `${model.replace(/[^\w.-]+/g, "-")}-${seed}.png`;
const apiOf = (path) => new URL(path, location.href).href;
const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlOf(entry) {
  const { model, prompt, size, nfe, seed } = entry;
  const lines = [`curl -sSf ${inShell(apiOf("v1/images/generations"))} -H 'Content-Type: application/json'`];
  if (access.key) lines.push(`-H "Authorization: Bearer $ARCFLOW_API_KEY"`);
  lines.push(`-d ${inShell(bodyOf({ model, prompt, size, nfe, seed }))}`);
  lines.push(`| sed 's/.*"b64_json":"\\([^"]*\\)".*/\\1/' | base64 -d > ${inShell(fileOf(entry))}`);
  return lines.join(" \\\n  ") + "\n";
}

// Strings of JSON are strings of Python too.
function pythonOf(entry) {
  const { model, prompt, size, nfe, seed } = entry;
  const key = access.key ? `os.environ["ARCFLOW_API_KEY"]` : `"none"`;
  return `import base64
${access.key ? "import os\n" : ""}from pathlib import Path

from openai import OpenAI  # pip install openai

client = OpenAI(base_url=${JSON.stringify(apiOf("v1"))}, api_key=${key})
answer = client.images.generate(
    model=${JSON.stringify(model)},
    prompt=${JSON.stringify(prompt)},
    size=${JSON.stringify(size)},
    extra_body={"nfe": ${nfe}, "seed": ${seed}},
)
Path(${JSON.stringify(fileOf(entry))}).write_bytes(base64.b64decode(answer.data[0].b64_json))
`;
}

// Browsers give pages without TLS no clipboard, but for those of this machine.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("not copied");
}
