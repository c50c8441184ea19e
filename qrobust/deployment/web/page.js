// The page: a picture from a file or the camera, shifts, and what each graph says of it.
import { fitted, planes } from "./prepare.js";
import { shifted } from "./shifts.js";

const LIBRARY = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
// What a session needs to compute as the target does; see infer.py.
const SESSIONS = { arm64: { qdqisint8allowed: "1" } };
const SHIFTS = ["fog", "noise", "darkness"];
const BEST = 3;
const PAUSE_MS = 100; // between frames of the camera

const find = (id) => document.getElementById(id);
const canvas = find("shown");
let manifest, ort;
const graphs = []; // { name, session, rows, time }
let base = null; // what the graphs would see without a shift
let [asked, running] = [false, false];
let stream = null;

function say(state, text) {
  document.body.dataset.state = state;
  find("status").textContent = text;
}

function made(parent, kind, text = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  parent.append(element);
  return element;
}

async function bytes(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} is not there`);
  return answer;
}

async function start() {
  manifest = await (await bytes("../manifest.json")).json();
  try {
    ort = await import(LIBRARY);
  } catch {
    throw new Error("onnxruntime-web is not there; README.md has the command that puts it into this folder");
  }
  ort.env.wasm.numThreads = 1;
  for (const { file, name } of manifest.web) {
    say("loading", `Loading ${name} ...`);
    const model = new Uint8Array(await (await bytes(`../${file}`)).arrayBuffer());
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      extra: { session: SESSIONS[manifest.target] ?? {} },
    });
    const card = made(find("graphs"), "section");
    made(card, "h2", name);
    const rows = made(made(card, "table"), "tbody");
    rows.parentElement.setAttribute("aria-label", `Classes by ${name}`);
    const time = made(card, "p");
    time.className = "time";
    graphs.push({ name, session, rows, time });
  }
  for (const id of ["file", "camera"]) find(id).disabled = false;
  say("ready", "Ready: choose a picture, or start the camera.");
}

// RGB of what a canvas can draw, over white.
function decoded(source, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) pixels.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return { pixels, width, height, channels: 3 };
}

async function choose(file) {
  stop();
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    say("ready", `${file.name} is no picture that this browser can decode.`);
    return;
  }
  take(decoded(bitmap, bitmap.width, bitmap.height));
  bitmap.close();
  await classify();
}

function take(picture) {
  base = fitted(picture, manifest.steps);
  const { channels, side } = manifest.input;
  if (base.width !== side || base.height !== side || base.channels !== channels) {
    base = null;
    throw new Error(`expected a picture of ${side} x ${side} px, got ${picture.width} x ${picture.height}`);
  }
}

function draw(image) {
  const { pixels, width, height, channels } = image;
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) {
      data.data[4 * i + channel] = pixels[i * channels + (channels === 1 ? 0 : channel)];
    }
    data.data[4 * i + 3] = 255;
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(data, 0, 0);
}

function show(graph, logits, took) {
  const most = Math.max(...logits);
  const shares = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = shares.reduce((a, b) => a + b);
  const best = [...shares.keys()].sort((a, b) => shares[b] - shares[a] || a - b).slice(0, BEST);
  graph.rows.replaceChildren();
  for (const index of best) {
    const row = made(graph.rows, "tr");
    made(row, "td", manifest.class_names[index]);
    const meter = made(made(row, "td"), "meter");
    meter.value = shares[index] / sum;
    meter.setAttribute("aria-label", "confidence");
    made(row, "td", `${((100 * shares[index]) / sum).toFixed(1)} %`);
  }
  graph.time.textContent = `${took.toFixed(1)} ms`;
}

// Ask all graphs; where something changes meanwhile, once more.
async function classify() {
  asked = true;
  if (running || !base || !graphs.length) return;
  running = true;
  try {
    while (asked) {
      asked = false;
      const strengths = Object.fromEntries(SHIFTS.map((name) => [name, Number(find(name).value)]));
      const seen = shifted(base, strengths);
      draw(seen);
      const { channels, side } = manifest.input;
      for (const graph of graphs) {
        const input = new ort.Tensor("float32", planes(seen, manifest.steps), [1, channels, side, side]);
        const began = performance.now();
        const found = await graph.session.run({ [graph.session.inputNames[0]]: input });
        show(graph, found[graph.session.outputNames[0]].data, performance.now() - began);
      }
      canvas.setAttribute("aria-label", "What the graphs see");
      if (!stream) say("shown", "Classified.");
    }
  } finally {
    running = false;
  }
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  find("video").srcObject = null;
  find("camera").setAttribute("aria-pressed", "false");
}

async function watch() {
  const video = find("video");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    say("ready", `No camera: ${error.message}`);
    return;
  }
  find("camera").setAttribute("aria-pressed", "true");
  video.srcObject = stream;
  await video.play();
  say("shown", "Camera is on.");
  while (stream) {
    take(decoded(video, video.videoWidth, video.videoHeight));
    await classify();
    await new Promise((resume) => setTimeout(resume, PAUSE_MS));
  }
  say("ready", "Camera is off.");
}

// Whatever fails is said, once.
const guarded =
  (act) =>
  async (...given) => {
    try {
      await act(...given);
    } catch (error) {
      stop();
      say("failed", error.message);
    }
  };

find("file").addEventListener("change", guarded(({ target }) => target.files[0] && choose(target.files[0])));
find("camera").addEventListener("click", guarded(() => (stream ? stop() : watch())));
for (const name of SHIFTS) {
  find(name).addEventListener(
    "input",
    guarded(({ target }) => {
      target.nextElementSibling.value = target.value;
      return classify();
    }),
  );
}
find("reset").addEventListener(
  "click",
  guarded(() => {
    for (const name of SHIFTS) {
      find(name).value = 0;
      find(name).nextElementSibling.value = 0;
    }
    return classify();
  }),
);
await guarded(start)();
