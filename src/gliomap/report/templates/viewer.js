"use strict";

(async () => {
  await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn))); // the page can be read before
  const settings = JSON.parse(document.getElementById("viewer-settings").textContent);
  const viewer = document.getElementById("viewer");
  const canvas = document.getElementById("viewer-canvas");
  const form = document.getElementById("viewer-controls");
  // NiiVue's context, too: a canvas has one.
  if (!canvas.getContext("webgl2", { antialias: false }) || !window.DecompressionStream) return;

  // A volume is packed as gliomap.report.viewer.packed says; it is unpacked once, when it is first needed.
  const volumes = {};
  const unpacked = (name) => (volumes[name] ??= unpack(document.getElementById(`volume-${name}`)));
  async function unpack(element) {
    const text = atob(element.textContent);
    element.remove();
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1; i < voxels.length; i++) voxels[i] += voxels[i - 1];
    return voxels;
  }

  // NiiVue reads files: a NIfTI-1 header before the voxels.
  function nifti(voxels) {
    const file = new ArrayBuffer(352 + voxels.length);
    const header = new DataView(file);
    header.setInt32(0, 348, true);
    [3, ...settings.shape, 1, 1, 1, 1].forEach((size, i) => header.setInt16(40 + 2 * i, size, true));
    header.setInt16(70, 2, true); // uint8
    header.setInt16(72, 8, true);
    [1, ...settings.spacing_mm].forEach((size, i) => header.setFloat32(76 + 4 * i, size, true));
    header.setFloat32(108, 352, true);
    header.setFloat32(112, 1, true);
    header.setUint8(123, 2); // mm
    header.setInt16(254, 1, true);
    settings.affine.slice(0, 3).flat().forEach((value, i) => header.setFloat32(280 + 4 * i, value, true));
    [110, 43, 49, 0].forEach((byte, i) => header.setUint8(344 + i, byte)); // n+1
    new Uint8Array(file).set(voxels, 352);
    return file;
  }

  const chosen = (name) => form.elements[name].value;
  const isOn = (toggle) => form.elements[`toggle-${toggle.name}`].checked;

  // NiiVue's table of labels: colours by value, the first of which is the background.
  function labels(colours) {
    const rows = [[0, 0, 0, 0], ...colours.map((colour) => (colour ? [...colour, 255] : [0, 0, 0, 0]))];
    const channels = [0, 1, 2, 3].map((channel) => rows.map((row) => row[channel]));
    return { R: channels[0], G: channels[1], B: channels[2], A: channels[3], I: rows.map((_, i) => i) };
  }

  function classColours() {
    const numbers = Object.keys(settings.tissues).map(Number);
    return numbers.map((number) => settings.toggles.find((t) => isOn(t) && t.classes.includes(number))?.colour);
  }

  async function difference(classes) {
    const [predicted, truth] = await Promise.all([unpacked("classes"), unpacked("truth")]);
    const inside = new Uint8Array(256);
    for (const number of classes) inside[number] = 1;
    const outcomes = [0, 3, 2, 1]; // neither, only the reference, only the segmentation, both
    return predicted.map((number, i) => outcomes[2 * inside[number] + inside[truth[i]]]);
  }

  const nv = new niivue.Niivue({
    logLevel: "error",
    sliceType: niivue.SLICE_TYPE.AXIAL, // until all is there: the 3-D view takes a processor long to draw
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    scrollRequiresFocus: true,
    multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    show3Dcrosshair: true,
    crosshairColor: [1, 1, 1, 0.6],
    crosshairWidth: 0.6,
    crosshairGap: 6,
    fontColor: [0.9, 0.9, 0.9, 1],
    clipPlaneColor: [0, 0, 0, 0],
  });

  // The two layers: the image and what lies over it.
  let image, overlay;
  function redraw(layer) {
    nv.refreshLayers(layer, nv.volumes.indexOf(layer));
    nv.drawScene();
  }

  async function showImage() {
    const name = chosen("image");
    const voxels = await unpacked(`image-${name}`);
    if (name !== chosen("image")) return; // another was chosen meanwhile
    image.img = voxels;
    redraw(image);
  }

  async function showOverlay() {
    const name = chosen("overlay");
    const { kind, classes } = settings.overlays[name];
    const voxels = kind === "difference" ? await difference(classes) : await unpacked(name);
    if (name !== chosen("overlay")) return;
    overlay.img = voxels;
    if (kind === "uncertainty") overlay.colormapLabel = null;
    else overlay.setColormapLabel(labels(kind === "classes" ? classColours() : settings.differences));
    for (const legend of form.querySelectorAll("[data-kind]")) legend.hidden = legend.dataset.kind !== kind;
    overlay.opacity = form.elements.opacity.value / 100;
    if (nv.volumes.includes(overlay)) redraw(overlay);
  }

  function setOpacity(share) {
    overlay.opacity = share;
    redraw(overlay);
  }

  function goTo(voxel) {
    const inBox = voxel.map((at, axis) => Math.floor((at - settings.start[axis]) / settings.step));
    nv.scene.crosshairPos = nv.vox2frac(inBox);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  const shownNumber = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: false });
  function intensity(grey, [low, high]) {
    if (grey === 0) return "0";
    const sign = low < high ? { 1: "≤ ", 255: "≥ " }[grey] ?? "" : "";
    return sign + shownNumber(low + ((grey - 1) / 254) * (high - low));
  }

  // Later calls overtake earlier ones that still wait for a volume.
  let latest = 0;
  async function tell({ vox, mm }) {
    const call = ++latest;
    const [columns, rows] = settings.shape;
    const at = vox[0] + columns * (vox[1] + rows * vox[2]);
    const written = {};
    const sides = [["L", "R"], ["P", "A"], ["I", "S"]];
    written.position = sides
      .map(([less, more], i) => `${mm[i] < 0 ? less : more} ${Math.abs(mm[i]).toFixed(1)}`)
      .join("  ");
    const place = vox.slice(0, 3).map((index, axis) => 1 + settings.start[axis] + settings.step * index);
    written.slices = `axial ${place[2]}, coronal ${place[1]}, sagittal ${place[0]}`;
    for (const [number, window_] of settings.windows.entries()) {
      written[`image-${number}`] = intensity((await unpacked(`image-${number}`))[at], window_);
    }
    for (const name of ["classes", "truth"]) {
      if (name in settings.overlays) written[name] = settings.tissues[(await unpacked(name))[at]] ?? "none";
    }
    for (const name of settings.uncertainty) written[name] = ((await unpacked(name))[at] / 255).toFixed(2);
    if (call !== latest) return;
    for (const [name, text] of Object.entries(written)) document.getElementById(`at-${name}`).textContent = text;
  }

  // The viewer's left is the patient's right, so that the arrow goes the way that it shows. Other keys are the page's.
  const moves = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };
  canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation());
  canvas.addEventListener("keydown", (event) => {
    event.stopImmediatePropagation();
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    nv.moveCrosshairInVox(...moves[event.key]);
  });

  document.getElementById("viewer-parts").hidden = false;
  document.getElementById("viewer-missing").hidden = true;
  form.reset(); // what a browser remembers of an earlier visit is not what is drawn
  const first = Promise.all([unpacked(`image-${settings.shown}`), unpacked("classes")]);
  await nv.attachToCanvas(canvas);
  const files = (await first).map(nifti);
  image = await niivue.NVImage.new(files[0], "image.nii", "gray", 1, null, 0, 255);
  overlay = await niivue.NVImage.new(files[1], "overlay.nii", "inferno", 1, null, 1, 255);
  await showOverlay();
  nv.addVolume(image);
  nv.addVolume(overlay);
  nv.onLocationChange = tell;
  goTo(settings.crosshair);
  nv.setSliceType(niivue.SLICE_TYPE[chosen("view")]);

  form.addEventListener("input", ({ target }) => {
    if (target.name === "image") showImage();
    else if (target.name === "opacity") setOpacity(target.value / 100);
    else if (target.name === "view") nv.setSliceType(niivue.SLICE_TYPE[target.value]);
    else if (target.name === "cut") nv.setClipPlane(target.checked ? [0, 270, 0] : [2, 0, 0]);
    else showOverlay();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("button[data-voxel]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      goTo(JSON.parse(button.dataset.voxel));
      canvas.focus({ preventScroll: true });
      viewer.scrollIntoView();
    });
  }
  form.inert = false;
  requestAnimationFrame(() => {
    viewer.dataset.state = "ready";
    performance.mark("viewer ready");
  });
})();
