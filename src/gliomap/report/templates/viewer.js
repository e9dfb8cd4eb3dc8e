"use strict";

(() => {
  const SIDES = [["L", "R"], ["P", "A"], ["I", "S"]];
  // The viewer's left is the patient's right, so that the arrow goes the way that it shows. Other keys are the page's.
  const MOVES = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };
  // These draw on the processor, where a 3-D view takes a second: it is drawn when it is asked for.
  const SOFTWARE = /swiftshader|llvmpipe|softpipe|basic render/i;
  const frame = () => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));

  // A volume is compressed as gliomap.report.viewer.compressed says.
  async function decompressed(content) {
    const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1, last = voxels[0]; i < voxels.length; i++) voxels[i] = last = (last + voxels[i]) & 255;
    return voxels;
  }

  function bytesOf(element) {
    const text = atob(element.textContent);
    element.remove();
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // Every voxel of a coarser grid stands for those of this shape that are nearest after it.
  function enlarged(voxels, [columns, rows, slices], factor) {
    if (factor === 1) return voxels;
    const [width, height] = [Math.ceil(columns / factor), Math.ceil(rows / factor)];
    const found = new Uint8Array(columns * rows * slices);
    for (let z = 0, to = 0; z < slices; z++) {
      for (let y = 0; y < rows; y++) {
        const from = width * (Math.floor(y / factor) + height * Math.floor(z / factor));
        for (let x = 0; x < columns; x++) found[to++] = voxels[from + Math.floor(x / factor)];
      }
    }
    return found;
  }

  // NiiVue reads files: a NIfTI-1 header before the voxels.
  function nifti(voxels, { shape, spacing_mm, affine }) {
    const file = new ArrayBuffer(352 + voxels.length);
    const header = new DataView(file);
    header.setInt32(0, 348, true);
    [3, ...shape, 1, 1, 1, 1].forEach((size, i) => header.setInt16(40 + 2 * i, size, true));
    header.setInt16(70, 2, true); // uint8
    header.setInt16(72, 8, true);
    [1, ...spacing_mm].forEach((size, i) => header.setFloat32(76 + 4 * i, size, true));
    header.setFloat32(108, 352, true);
    header.setFloat32(112, 1, true);
    header.setUint8(123, 2); // mm
    header.setFloat32(124, 255, true); // NiiVue need not look for the range
    header.setInt16(254, 1, true);
    affine.slice(0, 3).flat().forEach((value, i) => header.setFloat32(280 + 4 * i, value, true));
    [110, 43, 49, 0].forEach((byte, i) => header.setUint8(344 + i, byte)); // n+1
    new Uint8Array(file).set(voxels, 352);
    return file;
  }

  // NiiVue's table of labels: colours by value, the first of which is the background.
  function labels(colours) {
    const rows = [[0, 0, 0, 0], ...colours.map((colour) => (colour ? [...colour, 255] : [0, 0, 0, 0]))];
    const channels = [0, 1, 2, 3].map((channel) => rows.map((row) => row[channel]));
    return { R: channels[0], G: channels[1], B: channels[2], A: channels[3], I: rows.map((_, i) => i) };
  }

  const shownNumber = (value) => String(Number(value.toPrecision(4)));
  // 1 and 255 stand for the ends, and 0 for nothing.
  const scaled = (level, [low, high]) => low + ((level - 1) / 254) * (high - low);
  function intensity(grey, window_) {
    if (grey === 0) return "0";
    const sign = window_[0] < window_[1] ? { 1: "≤ ", 255: "≥ " }[grey] ?? "" : "";
    return sign + shownNumber(scaled(grey, window_));
  }

  // What the controls say.
  class Choices {
    constructor(form, settings) {
      Object.assign(this, { form, settings });
    }
    value(name) {
      return this.form.elements[name].value;
    }
    get overlay() {
      return this.settings.overlays[this.value("overlay")];
    }
    get opacity() {
      return this.value("opacity") / 100;
    }
    // The lowest level of a map that is shown.
    get threshold() {
      return 1 + Math.round(2.54 * this.value("threshold"));
    }
    colours() {
      const { tissues, toggles, differences, colours } = this.settings;
      const { kind } = this.overlay;
      if (kind === "difference") return differences;
      if (kind === "map") return colours.map((colour, i) => (i + 1 < this.threshold ? null : colour));
      const on = toggles.filter((toggle) => this.form.elements[`toggle-${toggle.name}`].checked);
      return Object.keys(tissues).map((number) => on.find((toggle) => toggle.classes.includes(Number(number)))?.colour);
    }
  }

  // One canvas with the volumes of one grid.
  class Pane {
    constructor(root, canvas, choices, number) {
      Object.assign(this, { root, canvas, choices, number, volumes: {}, latest: 0 });
      Object.assign(this, { settings: choices.settings, own: choices.settings.panes[number] });
      this.nv = new niivue.Niivue({
        logLevel: "error",
        sliceType: niivue.SLICE_TYPE.AXIAL,
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        scrollRequiresFocus: true,
        multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
        multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
        show3Dcrosshair: true,
        crosshairColor: [1, 1, 1, 0.6],
        crosshairWidth: 0.6,
        crosshairGap: 6,
        fontColor: [0.9, 0.9, 0.9, 1],
        clipPlaneColor: [0, 0, 0, 0],
      });
    }

    has(name) {
      return name in this.own.windows || this.own.classes.includes(name) || this.own.maps.includes(name);
    }

    // A volume is read when it is first needed, and kept.
    voxels(name) {
      const forget = (error) => {
        delete this.volumes[name];
        throw error;
      };
      return (this.volumes[name] ??= this.read(name).catch(forget));
    }

    async read(name) {
      const { shape, coarser, maps } = this.own;
      if (!this.has(name)) return new Uint8Array(shape[0] * shape[1] * shape[2]);
      const key = `${this.number}-${name}`;
      const { address } = this.settings;
      const place = address === null && document.querySelector(`script[data-viewer="${this.root.id}"][data-volume="${key}"]`);
      const voxels = await decompressed(place ? bytesOf(place) : await this.fetched(`${address}/${key}`));
      return maps.includes(name) ? enlarged(voxels, shape, coarser) : voxels;
    }

    async fetched(url) {
      const response = await fetch(url).catch(() => ({ ok: false }));
      this.root.querySelector(".trouble").hidden = response.ok;
      if (!response.ok) throw new Error(`${url} could not be fetched`);
      return response.arrayBuffer();
    }

    async difference(classes) {
      const [predicted, truth] = await Promise.all([this.voxels("classes"), this.voxels("truth")]);
      const inside = new Uint8Array(256);
      for (const number of classes) inside[number] = 1;
      const outcomes = [0, 3, 2, 1]; // neither, only the reference, only the segmentation, both
      if (!this.has("truth")) return truth;
      return predicted.map((number, i) => outcomes[2 * inside[number] + inside[truth[i]]]);
    }

    async open() {
      const first = Promise.all([this.voxels(this.settings.shown), this.voxels("classes")]);
      await this.nv.attachToCanvas(this.canvas);
      const files = (await first).map((voxels) => nifti(voxels, this.own));
      this.image = await niivue.NVImage.new(files[0], "image.nii", "gray", 1, null, 0, 255);
      this.overlay = await niivue.NVImage.new(files[1], "overlay.nii", "gray", 1, null, 0, 255);
      this.overlay.setColormapLabel(labels(this.choices.colours()));
      this.overlay.opacity = this.choices.opacity;
      this.nv.volumes = [this.image, this.overlay];
      this.nv.setVolume(this.image, 0); // both are drawn once; added one by one, the image would be drawn twice
      this.goTo(this.own.crosshair);
      this.listen();
    }

    listen() {
      this.nv.onLocationChange = (place) => this.tell(place);
      this.canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation());
      this.canvas.addEventListener("keydown", (event) => {
        event.stopImmediatePropagation();
        if (!(event.key in MOVES) || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        this.nv.moveCrosshairInVox(...MOVES[event.key]);
      });
    }

    redraw(layer) {
      this.nv.refreshLayers(layer, this.nv.volumes.indexOf(layer));
      this.nv.drawScene();
    }

    async showImage() {
      const name = this.choices.value("image");
      const voxels = await this.voxels(name);
      if (name !== this.choices.value("image")) return; // another was chosen meanwhile
      this.image.img = voxels;
      this.redraw(this.image);
    }

    async showOverlay() {
      const name = this.choices.value("overlay");
      const { kind, classes } = this.choices.overlay;
      const voxels = kind === "difference" ? await this.difference(classes) : await this.voxels(name);
      if (name !== this.choices.value("overlay")) return;
      this.overlay.img = voxels;
      this.recolour();
      this.nv.createOnLocationChange();
    }

    recolour() {
      this.overlay.setColormapLabel(labels(this.choices.colours()));
      this.overlay.opacity = this.choices.opacity;
      this.redraw(this.overlay);
    }

    setView(view, render) {
      const { ALWAYS, NEVER } = niivue.SHOW_RENDER;
      this.nv.opts.multiplanarShowRender = view === "MULTIPLANAR" && render ? ALWAYS : NEVER;
      this.nv.setSliceType(niivue.SLICE_TYPE[view === "PLANES" ? "MULTIPLANAR" : view]);
    }

    goTo(voxel) {
      const inBox = voxel.map((at, axis) => Math.floor((at - this.own.start[axis]) / this.own.step));
      this.nv.scene.crosshairPos = this.nv.vox2frac(inBox);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    async tell({ vox, mm }) {
      const call = ++this.latest; // later calls overtake earlier ones that still wait for a volume
      const [columns, rows] = this.own.shape;
      const at = vox[0] + columns * (vox[1] + rows * vox[2]);
      const place = vox.slice(0, 3).map((index, axis) => this.own.start[axis] + this.own.step * index);
      const sides = SIDES.map(([less, more], i) => `${mm[i] < 0 ? less : more} ${Math.abs(mm[i]).toFixed(1)}`);
      this.write("position", sides.join("  "));
      this.write("slices", `axial ${place[2] + 1}, coronal ${place[1] + 1}, sagittal ${place[0] + 1}`);
      this.onMove?.(place);
      const shown = this.choices.overlay;
      const map = shown.kind === "map" ? this.choices.value("overlay") : null;
      for (const name of [map, "classes", "truth", ...Object.keys(this.own.windows)].filter((n) => n && this.has(n))) {
        const value = (await this.voxels(name))[at];
        if (call !== this.latest) return;
        if (name === map) this.write("map", value ? shownNumber(scaled(value, shown.limits)) : "none");
        else if (name in this.own.windows) this.write(name, intensity(value, this.own.windows[name]));
        else this.write(name, this.settings.tissues[value] ?? "none");
      }
    }

    write(name, text) {
      this.root.querySelector(`[data-at="${name}"][data-pane="${this.number}"]`).textContent = text;
    }
  }

  // Panes of one grid have one crosshair.
  function link(panes) {
    const grid = ({ own }) => JSON.stringify([own.shape, own.affine, own.start]);
    for (const pane of panes) {
      const others = panes.filter((other) => other !== pane && grid(other) === grid(pane));
      pane.onMove = (place) => {
        pane.place = place;
        for (const other of others) {
          if (String(other.place) !== String(place)) other.goTo(place);
        }
      };
    }
  }

  async function show(root) {
    const form = root.querySelector("form");
    const settings = JSON.parse(document.querySelector(`script[data-settings="${root.id}"]`).textContent);
    const canvases = [...root.querySelectorAll("canvas")];
    // NiiVue's contexts, too: a canvas has one.
    const contexts = canvases.map((canvas) => canvas.getContext("webgl2", { antialias: false }));
    if (contexts.includes(null) || !window.DecompressionStream) return;
    root.querySelector(".parts").hidden = false;
    root.querySelector(".missing").hidden = true;
    form.reset(); // what a browser remembers of an earlier visit is not what is drawn
    const choices = new Choices(form, settings);
    const panes = canvases.map((canvas, number) => new Pane(root, canvas, choices, number));
    const information = contexts[0].getExtension("WEBGL_debug_renderer_info");
    const renderer = contexts[0].getParameter(information?.UNMASKED_RENDERER_WEBGL ?? contexts[0].RENDERER);
    if (SOFTWARE.test(renderer) && choices.value("view") === "MULTIPLANAR") form.elements.view.value = "PLANES";
    for (const pane of panes) await pane.open();
    for (const pane of panes) pane.setView(choices.value("view"), false);
    control(root, form, choices, panes);
    link(panes);
    form.inert = false;
    await frame();
    root.dataset.state = "ready";
    performance.mark("viewer ready");
    for (const pane of panes) pane.nv.createOnLocationChange();
    setTimeout(() => panes.forEach((pane) => pane.setView(choices.value("view"), true)), 200);
  }

  function control(root, form, choices, panes) {
    const all = (act) => panes.forEach(act);
    const tidy = () => {
      const { kind, limits, title } = choices.overlay;
      for (const part of root.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== kind;
      if (kind !== "map") return;
      const [low, high] = limits.map(shownNumber);
      const said = { low, high, hidden: shownNumber(scaled(choices.threshold, limits)), title };
      for (const [name, text] of Object.entries(said)) root.querySelector(`[data-scale=${name}]`).textContent = text;
      root.querySelector(".scale").style.setProperty("--hidden", `${choices.value("threshold")}%`);
    };
    form.addEventListener("input", ({ target }) => {
      if (target.name === "image") all((pane) => pane.showImage());
      else if (target.name === "view") all((pane) => pane.setView(target.value, true));
      else if (target.name === "cut") all((pane) => pane.nv.setClipPlane(target.checked ? [0, 270, 0] : [2, 0, 0]));
      else if (target.name === "overlay") all((pane) => pane.showOverlay());
      else all((pane) => pane.recolour());
      tidy();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const button of document.querySelectorAll(`button[data-viewer="${root.id}"]`)) {
      button.hidden = false;
      button.addEventListener("click", () => {
        const pane = panes[button.dataset.pane];
        if (button.dataset.overlay) form.elements.overlay.value = button.dataset.overlay;
        if (button.dataset.voxel) pane.goTo(JSON.parse(button.dataset.voxel));
        form.elements.overlay.dispatchEvent(new Event("input", { bubbles: true }));
        pane.canvas.focus({ preventScroll: true });
        root.scrollIntoView();
      });
    }
  }

  // The page can be read before.
  frame().then(() => document.querySelectorAll(".viewer").forEach(show));
})();
