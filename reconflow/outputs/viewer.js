// The report's 3D view: one GLB as this project writes it, orbit, pan and zoom. Plain WebGL 2, no library, no network.
// Colours are shown as they are in the texture (unlit), which is also how quality is measured.
"use strict";
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const canvas = root.querySelector("canvas");
  const note = root.querySelector(".viewer-note");
  const gl = canvas.getContext("webgl2", { antialias: true, alpha: false, preserveDrawingBuffer: true });
  const fail = (why) => {
    root.classList.add("no-webgl");
    note.textContent = why + " The turntable is shown instead.";
  };
  if (!gl) return fail("This browser has no WebGL 2.");
  gl.clearColor(0.937, 0.949, 0.961, 1); // #eff2f5, so that pale objects stand out
  gl.clear(gl.COLOR_BUFFER_BIT);

  const parseGlb = (bytes) => {
    const view = new DataView(bytes.buffer);
    const jsonLength = view.getUint32(12, true);
    const json = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + jsonLength)));
    const start = 28 + jsonLength;
    const part = (index) => {
      const { byteOffset = 0, byteLength } = json.bufferViews[index];
      return bytes.slice(start + byteOffset, start + byteOffset + byteLength);
    };
    const array = (index) => {
      const accessor = json.accessors[index];
      const kinds = { 5126: Float32Array, 5123: Uint16Array, 5125: Uint32Array };
      return new kinds[accessor.componentType](part(accessor.bufferView).buffer);
    };
    const primitive = json.meshes[0].primitives[0];
    const image = json.images[0];
    return {
      positions: array(primitive.attributes.POSITION),
      normals: array(primitive.attributes.NORMAL),
      uvs: array(primitive.attributes.TEXCOORD_0),
      indices: array(primitive.indices),
      bounds: json.accessors[primitive.attributes.POSITION],
      image: new Blob([part(image.bufferView)], { type: image.mimeType }),
    };
  };

  const edgesOf = (indices) => {
    const edges = new Uint32Array(indices.length * 2);
    for (let f = 0, k = 0; f < indices.length; f += 3)
      for (let c = 0; c < 3; c++) {
        edges[k++] = indices[f + c];
        edges[k++] = indices[f + ((c + 1) % 3)];
      }
    return edges;
  };

  const compile = (vertex, fragment) => {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, "#version 300 es\nprecision highp float;\n" + source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    ["position", "normal", "uv"].forEach((name, slot) => gl.bindAttribLocation(program, slot, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return program;
  };

  // Column-major 4 x 4 matrices; the camera looks along -z, +y is up.
  const perspective = (fov, aspect, near, far) => {
    const f = 1 / Math.tan(fov / 2);
    return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
  };
  const multiply = (a, b) => {
    const out = new Float32Array(16);
    for (let c = 0; c < 4; c++)
      for (let r = 0; r < 4; r++)
        for (let k = 0; k < 4; k++) out[4 * c + r] += a[4 * k + r] * b[4 * c + k];
    return out;
  };

  const FOV = (35 * Math.PI) / 180;
  const FACES = { front: [0, 0], back: [Math.PI, 0], left: [Math.PI / 2, 0], right: [-Math.PI / 2, 0], top: [Math.PI, Math.PI / 2], bottom: [0, -Math.PI / 2] };
  const START = [0.6, 0.32];

  const start = (mesh, picture) => {
    const program = compile(
      `in vec3 position; in vec3 normal; in vec2 uv; uniform mat4 clip; uniform float lift; out vec2 st; out vec3 n; out vec3 p;
       void main() { st = uv; n = normal; p = position; gl_Position = clip * vec4(position, 1.0);
         gl_Position.z -= lift * gl_Position.w; }`,
      `in vec2 st; in vec3 n; in vec3 p; uniform sampler2D base; uniform vec3 eye; uniform int mode; uniform float ink; out vec4 colour;
       void main() {
         if (mode == 2) { colour = vec4(0.08, 0.30, 0.40, ink); return; }
         vec3 texel = texture(base, st).rgb;
         float facing = abs(dot(normalize(n), normalize(eye - p)));
         if (mode == 1) texel = vec3(0.30 + 0.58 * pow(facing, 0.8));
         if (mode == 3) texel = vec3(0.90 + 0.06 * facing);
         colour = vec4(texel, 1.0);
       }`);
    const slots = [[mesh.positions, 3], [mesh.normals, 3], [mesh.uvs, 2]];
    slots.forEach(([data, width], slot) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, width, gl.FLOAT, false, 0, 0);
    });
    const faceBuffer = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faceBuffer);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.indices, gl.STATIC_DRAW);
    const indexType = mesh.indices.BYTES_PER_ELEMENT === 2 ? gl.UNSIGNED_SHORT : gl.UNSIGNED_INT;
    let edgeBuffer = null;

    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    const sharper = gl.getExtension("EXT_texture_filter_anisotropic");
    if (sharper) gl.texParameterf(gl.TEXTURE_2D, sharper.TEXTURE_MAX_ANISOTROPY_EXT, 8);

    const { min, max } = mesh.bounds;
    const middle = [0, 1, 2].map((k) => (min[k] + max[k]) / 2);
    let radius = 1e-6;
    for (let i = 0; i < mesh.positions.length; i += 3)
      radius = Math.max(radius, Math.hypot(...[0, 1, 2].map((k) => mesh.positions[i + k] - middle[k])));
    const state = { azimuth: START[0], elevation: START[1], zoom: 1, target: middle.slice(), mode: 0, wanted: false };

    const axes = () => {
      const [ca, sa, ce, se] = [Math.cos(state.azimuth), Math.sin(state.azimuth), Math.cos(state.elevation), Math.sin(state.elevation)];
      return { right: [ca, 0, -sa], up: [-se * sa, ce, -se * ca], back: [ce * sa, se, ce * ca] };
    };
    const distance = () => {
      const narrow = Math.min(1, canvas.width / Math.max(canvas.height, 1));
      return (1.06 * radius) / Math.sin(FOV / 2) / narrow / state.zoom;
    };
    const draw = () => {
      state.wanted = false;
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      const { right, up, back } = axes();
      const away = distance();
      const eye = state.target.map((t, k) => t + away * back[k]);
      const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
      const look = [right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0, -dot(right, eye), -dot(up, eye), -dot(back, eye), 1];
      const reach = 1.1 * (radius + Math.hypot(...state.target.map((t, k) => t - middle[k])));
      const near = Math.max(away - reach, away * 0.02);
      gl.useProgram(program);
      gl.uniformMatrix4fv(gl.getUniformLocation(program, "clip"), false, multiply(perspective(FOV, width / Math.max(height, 1), near, away + reach), look));
      gl.uniform3fv(gl.getUniformLocation(program, "eye"), eye);
      const mode = gl.getUniformLocation(program, "mode");
      gl.uniform1i(mode, state.mode === 2 ? 3 : state.mode);
      gl.uniform1f(gl.getUniformLocation(program, "lift"), 0);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faceBuffer);
      gl.drawElements(gl.TRIANGLES, mesh.indices.length, indexType, 0);
      if (state.mode === 2) {
        if (!edgeBuffer) {
          edgeBuffer = gl.createBuffer();
          gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edgeBuffer);
          gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, edgesOf(mesh.indices), gl.STATIC_DRAW);
        }
        gl.uniform1i(mode, 2);
        gl.uniform1f(gl.getUniformLocation(program, "lift"), 0.0006);
        gl.uniform1f(gl.getUniformLocation(program, "ink"), Math.max(0.25, Math.min(0.9, (30000 * state.zoom) / mesh.indices.length * 3)));
        gl.enable(gl.BLEND);
        gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
        gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edgeBuffer);
        gl.drawElements(gl.LINES, mesh.indices.length * 2, gl.UNSIGNED_INT, 0);
        gl.disable(gl.BLEND);
      }
    };
    const redraw = () => {
      if (!state.wanted) requestAnimationFrame(draw);
      state.wanted = true;
    };

    const turn = (dx, dy) => {
      state.azimuth -= dx;
      state.elevation = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, state.elevation + dy));
      redraw();
    };
    const pan = (dx, dy) => {
      const { right, up } = axes();
      const scale = (2 * distance() * Math.tan(FOV / 2)) / canvas.clientHeight;
      state.target = state.target.map((t, k) => t + scale * (dy * up[k] - dx * right[k]));
      redraw();
    };
    const zoom = (factor) => {
      state.zoom = Math.max(0.3, Math.min(30, state.zoom * factor));
      redraw();
    };
    const face = (name) => {
      [state.azimuth, state.elevation] = FACES[name] || START;
      state.zoom = 1;
      state.target = middle.slice();
      redraw();
    };

    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
      if (fingers.size === 1 && !(event.shiftKey || event.buttons & 6)) turn(dx * 0.008, dy * 0.008);
      else if (fingers.size === 2) {
        const other = [...fingers.entries()].find(([id]) => id !== event.pointerId)[1];
        const gap = (a) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
        zoom(gap(now) / gap(before));
        pan(dx / 2, dy / 2);
      } else pan(dx, dy);
      fingers.set(event.pointerId, now);
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.04 : 0.0015)));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0.15, 0], ArrowRight: [-0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15] };
      if (moves[event.key]) turn(...moves[event.key]);
      else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.15 : 1 / 1.15);
      else return;
      event.preventDefault();
    });
    root.querySelectorAll("button[data-face]").forEach((button) => button.addEventListener("click", () => face(button.dataset.face)));
    const show = (mode) => {
      state.mode = mode;
      root.querySelectorAll("button[data-mode]").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.mode) === mode)));
      redraw();
    };
    root.querySelectorAll("button[data-mode]").forEach((button) => button.addEventListener("click", () => show(Number(button.dataset.mode))));
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      fail("The graphics card dropped the picture; reload the page.");
    });
    new ResizeObserver(redraw).observe(canvas);
    const asked = new URLSearchParams(location.hash.slice(1)); // e.g. report.html#view=left&mode=1
    if (asked.has("view")) face(asked.get("view"));
    if (asked.has("mode")) show(Number(asked.get("mode")) % 3);
    draw();
    root.dataset.ready = "true";
  };

  const text = document.getElementById("model").textContent.trim();
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  try {
    const mesh = parseGlb(bytes);
    const picture = new Image();
    const sorry = (error) => fail("The 3D view could not start (" + error.message + ").");
    picture.onload = () => {
      try {
        start(mesh, picture);
      } catch (error) {
        sorry(error);
      }
      URL.revokeObjectURL(picture.src);
    };
    picture.onerror = () => sorry(new Error("its texture cannot be decoded"));
    picture.src = URL.createObjectURL(mesh.image);
  } catch (error) {
    fail("The 3D view could not start (" + error.message + ").");
  }
})();
