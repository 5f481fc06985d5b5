"use strict";
// The page of `ostrack-fast serve`: draws what the server sends, and sends what the user draws.

const $ = (id) => document.getElementById(id);
const view = $("view"), pen = view.getContext("2d");
const TONES = ["#ff8c00", "#4682ff", "#2fb36d", "#d14fb8", "#e0c020", "#20b8c8", "#c05040", "#8a6fe8"];
const tone = (id) => TONES[id % TONES.length];

const fresh = () => ({
  id: null, socket: null, webcam: null, frames: 0, size: [640, 360],
  shown: -1, picture: null, targets: [], regions: {}, scores: new Map(), chosen: null,
  playing: false, drag: null, box: null, waiting: false,
});
let app = fresh();

function say(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

// ---- sessions

async function start(kind, body) {
  stop();
  say(kind === "video" ? "Sending the video ..." : "Opening the webcam ...");
  const answer = await fetch(`sessions/${kind}`, { method: "POST", body });
  if (!answer.ok) {
    const text = await answer.text();
    let words = text;
    try { words = JSON.parse(text).detail; } catch { /* plain text */ }
    throw new Error(words);
  }
  const facts = await answer.json();
  app.id = facts.id;
  app.frames = facts.frames || 0;
  if (facts.width) app.size = [facts.width, facts.height];
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/sessions/${facts.id}`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => receive(event.data).catch((error) => say(error.message, true));
  socket.onclose = (event) => {
    if (socket !== app.socket) return;
    setPlaying(false);
    say(event.reason || "The connection to the server is closed.", true);
  };
  app.socket = socket;
  await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = () => reject(new Error("The server does not answer.")); });
  $("video").href = `sessions/${app.id}/video.mp4`;
  $("boxes").href = `sessions/${app.id}/boxes.csv`;
  $("time").max = Math.max(0, app.frames - 1);
  $("time").disabled = kind !== "video";
  $("play").disabled = $("new").disabled = false;
}

function stop() {
  if (app.webcam) app.webcam.getTracks().forEach((track) => track.stop());
  if (app.socket) app.socket.close();
  if (app.id) fetch(`sessions/${app.id}`, { method: "DELETE", keepalive: true });
  app = fresh();
  setPlaying(false);
  $("play").disabled = $("new").disabled = $("time").disabled = true;
  listTargets();
}

async function openVideo(file) {
  try {
    await start("video", file);
    say(`${file.name}: ${app.frames} frames. Draw a box around what you want to follow.`);
    send({ do: "show", frame: 0 });
  } catch (error) { say(error.message, true); }
}

async function openWebcam() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 720 } } });
    await start("webcam");
    app.webcam = stream;
    const video = document.createElement("video");
    video.srcObject = stream;
    video.muted = true;
    await video.play();
    app.source = video;
    say("Draw a box around what you want to follow.");
    setPlaying(true);
    sendPicture();
  } catch (error) { say(`No webcam: ${error.message}`, true); }
}

// The newest picture goes to the server as soon as it has answered for the one before.
function sendPicture() {
  if (!app.playing || !app.source || app.waiting) return;
  const mine = app, still = document.createElement("canvas");
  still.width = app.source.videoWidth;
  still.height = app.source.videoHeight;
  still.getContext("2d").drawImage(app.source, 0, 0);
  app.waiting = true;
  app.pending = still;
  still.toBlob(async (blob) => { if (mine === app) app.socket.send(await blob.arrayBuffer()); }, "image/jpeg", 0.85);
}

function send(message) {
  if (app.socket && app.socket.readyState === WebSocket.OPEN) app.socket.send(JSON.stringify(message));
}

async function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const state = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  if (state.error) {
    app.waiting = false;
    setPlaying(false);
    say(state.error, true);
    return;
  }
  if (state.paused) { setPlaying(false); if (state.end) say("The end of the video."); return; }
  if (state.dropped !== undefined) {
    app.scores.delete(state.dropped);
    app.targets = app.targets.filter((target) => target.id !== state.dropped);
    if (app.chosen === state.dropped) app.chosen = null;
    listTargets();
    draw();
    return;
  }
  if (data.byteLength > 4 + length) {
    app.picture = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
    send({ do: "seen" });
  } else if (app.pending && state.given === undefined) {
    app.picture = app.pending;
    app.waiting = false;
  }
  if (state.size) app.size = state.size;
  app.shown = state.frame;
  app.targets = state.targets;
  if (state.regions) app.regions = state.regions; else app.regions = {};
  if (state.given !== undefined) {
    app.chosen = state.given;
    forgetAfter(state.given, state.frame);
    say("Press play to follow it. Draw again at any frame to correct the box.");
    if (app.webcam) { setPlaying(true); }
  }
  for (const target of state.targets) {
    if (!app.scores.has(target.id)) app.scores.set(target.id, new Map());
    app.scores.get(target.id).set(state.frame, target.score === null ? 1 : target.score);
  }
  if (state.ms) $("speed").textContent = `${state.ms.toFixed(0)} ms a frame`;
  if (app.webcam) {
    app.frames = state.frame + 1;
    $("time").max = state.frame;
    if (app.box) giveBox(); else sendPicture();
  }
  $("time").value = state.frame;
  $("number").textContent = `frame ${state.frame}`;
  $("downloads").hidden = app.scores.size === 0;
  listTargets();
  draw();
}

function forgetAfter(id, frame) {
  const scores = app.scores.get(id);
  if (scores) for (const number of [...scores.keys()]) if (number > frame) scores.delete(number);
}

// ---- drawing

function draw() {
  const [width, height] = app.size;
  if (view.width !== width || view.height !== height) { view.width = width; view.height = height; }
  pen.clearRect(0, 0, width, height);
  if (app.picture) pen.drawImage(app.picture, 0, 0, width, height);
  const line = Math.max(2, width / 320);
  if ($("eliminated").checked) for (const id in app.regions) drawRegion(app.regions[id], tone(id));
  for (const target of app.targets) {
    const [x, y, w, h] = target.box;
    pen.lineWidth = line * (target.id === app.chosen ? 1.5 : 1);
    pen.strokeStyle = tone(target.id);
    pen.setLineDash(target.lost ? [4 * line, 3 * line] : []);
    pen.strokeRect(x, y, w, h);
    pen.setLineDash([]);
    const words = target.score === null ? "given" : `${target.lost ? "lost? " : ""}${target.score.toFixed(2)}`;
    pen.font = `${Math.max(12, width / 50)}px system-ui, sans-serif`;
    const high = Math.max(16, width / 40);
    pen.fillStyle = tone(target.id);
    pen.fillRect(x, Math.max(0, y - high), pen.measureText(words).width + 8, high);
    pen.fillStyle = "#111";
    pen.fillText(words, x + 4, Math.max(0, y - high) + high * 0.75);
  }
  if (app.drag) {
    const { x, y, w, h } = dragged();
    pen.lineWidth = line;
    pen.strokeStyle = "#fff";
    pen.setLineDash([2 * line, 2 * line]);
    pen.strokeRect(x, y, w, h);
    pen.setLineDash([]);
  }
  drawCurve();
}

function drawRegion(region, colour) {
  const cell = region.side / region.grid, left = new Set(region.candidates);
  pen.fillStyle = "#0009";
  for (let index = 0; index < region.grid * region.grid; index++) {
    if (left.has(index)) continue;
    pen.fillRect(region.left + (index % region.grid) * cell, region.top + Math.floor(index / region.grid) * cell, cell, cell);
  }
  pen.lineWidth = 1;
  pen.strokeStyle = colour;
  pen.strokeRect(region.left, region.top, region.side, region.side);
}

function drawCurve() {
  const canvas = $("curve"), to = canvas.getContext("2d"), { width, height } = canvas;
  to.clearRect(0, 0, width, height);
  const last = Math.max(app.frames - 1, 1), place = (frame, score) => [8 + (width - 16) * frame / last, height - 8 - (height - 16) * score];
  to.strokeStyle = "#8886";
  to.lineWidth = 1;
  for (const score of [0, 0.5, 1]) { to.beginPath(); to.moveTo(...place(0, score)); to.lineTo(...place(last, score)); to.stroke(); }
  for (const [id, scores] of app.scores) {
    to.strokeStyle = tone(id);
    to.lineWidth = 2;
    to.beginPath();
    let before = -2;
    for (const frame of [...scores.keys()].sort((a, b) => a - b)) {
      if (frame === before + 1) to.lineTo(...place(frame, scores.get(frame))); else to.moveTo(...place(frame, scores.get(frame)));
      before = frame;
    }
    to.stroke();
  }
  if (app.shown >= 0) {
    to.strokeStyle = "#d33";
    to.lineWidth = 1;
    to.beginPath(); to.moveTo(...place(app.shown, 0)); to.lineTo(...place(app.shown, 1)); to.stroke();
  }
}

function listTargets() {
  const list = $("targets");
  list.replaceChildren();
  for (const id of [...app.scores.keys()].sort((a, b) => a - b)) {
    const item = document.createElement("span"), choose = document.createElement("button"), drop = document.createElement("button");
    item.className = `target${id === app.chosen ? " chosen" : ""}`;
    item.style.setProperty("--tone", tone(id));
    choose.textContent = `target ${id + 1}`;
    choose.onclick = () => { app.chosen = id; listTargets(); draw(); };
    drop.textContent = "×";
    drop.title = `drop target ${id + 1}`;
    drop.onclick = () => send({ do: "drop", target: id });
    item.append(choose, drop);
    list.append(item);
  }
  $("hint").textContent = app.id === null ? "" : app.chosen === null ? "Draw a box: a new target" : `Draw a box: corrects target ${app.chosen + 1}`;
}

// ---- what the user does

function setPlaying(playing) {
  app.playing = playing;
  $("play").textContent = playing ? "Pause" : "Play";
}

function pause() {
  if (!app.webcam) send({ do: "pause" });
  setPlaying(false);
}

$("play").onclick = () => {
  if (app.playing) { pause(); return; }
  if (app.webcam) { setPlaying(true); app.waiting = false; sendPicture(); return; }
  setPlaying(true);
  say("");
  send({ do: "play", frame: app.shown + 1 < app.frames ? app.shown + 1 : 0 });
};
$("time").oninput = () => { pause(); send({ do: "show", frame: Number($("time").value) }); };
$("new").onclick = () => { app.chosen = null; listTargets(); };
$("eliminated").onchange = draw;
$("webcam").onclick = openWebcam;
$("file").onchange = () => { if ($("file").files.length) openVideo($("file").files[0]); };
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) openVideo(event.dataTransfer.files[0]);
});
addEventListener("pagehide", stop);

function at(event) {
  const place = view.getBoundingClientRect();
  return [(event.clientX - place.left) / place.width * view.width, (event.clientY - place.top) / place.height * view.height];
}

function dragged() {
  const [[x1, y1], [x2, y2]] = app.drag;
  return { x: Math.min(x1, x2), y: Math.min(y1, y2), w: Math.abs(x2 - x1), h: Math.abs(y2 - y1) };
}

view.onpointerdown = (event) => {
  if (app.shown < 0) return;
  if (app.playing) pause();
  view.setPointerCapture(event.pointerId);
  app.drag = [at(event), at(event)];
};
view.onpointermove = (event) => { if (app.drag) { app.drag[1] = at(event); draw(); } };
view.onpointerup = () => {
  if (!app.drag) return;
  const { x, y, w, h } = dragged(), [[px, py]] = app.drag;
  app.drag = null;
  if (w < 4 || h < 4) {
    // A click chooses the target it falls on.
    const hit = app.targets.find(({ box }) => px >= box[0] && py >= box[1] && px <= box[0] + box[2] && py <= box[1] + box[3]);
    app.chosen = hit ? hit.id : null;
    listTargets();
    draw();
    return;
  }
  app.box = [x, y, w, h];
  // A picture of the webcam may be on its way: the box belongs to the newest one.
  if (!app.waiting) giveBox();
};

function giveBox() {
  send({ do: "box", frame: app.shown, target: app.chosen, box: app.box });
  app.box = null;
}

listTargets();
draw();
