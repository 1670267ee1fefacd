// The values of a task, from its `.onnx_adapter` file: onnxruntime-web has no adapters, and takes them as inputs. It takes
// no inputs that have a default, so the defaults are left out of the model before it is opened.
//
// The file is a FlatBuffer of ONNX Runtime: a table with the parameters in its fourth field, of which each has a name,
// dims (int64), a type of ONNX (1 is float32) and bytes.

class Table {
  constructor(view, at) {
    this.view = view;
    this.at = at;
    this.fields = at - view.getInt32(at, true);
  }

  // where a field is, or 0 where the file leaves it out
  place(index) {
    const slot = 4 + 2 * index;
    if (slot >= this.view.getUint16(this.fields, true)) return 0;
    const offset = this.view.getUint16(this.fields + slot, true);
    return offset ? this.at + offset : 0;
  }

  int(index) {
    const at = this.place(index);
    return at ? this.view.getInt32(at, true) : 0;
  }

  // start and length of a vector or a text
  vector(index) {
    const place = this.place(index);
    if (!place) return [0, 0];
    const at = place + this.view.getUint32(place, true);
    return [at + 4, this.view.getUint32(at, true)];
  }
}

export function readAdapter(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at, length) => new TextDecoder().decode(bytes.subarray(at, at + length));
  if (bytes.length < 8 || text(4, 4) !== "TORT") throw new Error("this is no adapter of ONNX Runtime");
  const [start, count] = new Table(view, view.getUint32(0, true)).vector(3);
  const found = {};
  for (let i = 0; i < count; i++) {
    const at = start + 4 * i;
    const parameter = new Table(view, at + view.getUint32(at, true));
    const [dims, rank] = parameter.vector(1);
    const [data, length] = parameter.vector(3);
    const name = text(...parameter.vector(0));
    if (parameter.int(2) !== 1) throw new Error(`${name} is not float32`);
    found[name] = {
      dims: Array.from({ length: rank }, (_, d) => Number(view.getBigInt64(dims + 8 * d, true))),
      data: new Float32Array(bytes.slice(data, data + length).buffer),
    };
  }
  return found;
}

// The fields of a message of protobuf: number, where it starts, where its content starts, and where it ends.
function* fields(bytes, at, end) {
  const varint = () => {
    for (let value = 0, shift = 1; ; shift *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  };
  while (at < end) {
    const start = at;
    const key = varint();
    const sizes = { 0: () => (varint(), 0), 1: () => 8, 2: varint, 5: () => 4 };
    const size = sizes[key % 8]();
    yield { number: Math.floor(key / 8), start, content: at, end: at + size };
    at += size;
  }
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

// A model without the initialisers (field 5 of the graph, their name is field 8) of these names.
export function withoutDefaults(model, names) {
  const parts = [];
  for (const field of fields(model, 0, model.length)) {
    if (field.number !== 7) {
      parts.push(model.subarray(field.start, field.end));
      continue;
    }
    const kept = [];
    for (const part of fields(model, field.content, field.end)) {
      const name = part.number === 5 ? [...fields(model, part.content, part.end)].find((f) => f.number === 8) : undefined;
      const isDefault = name && names.has(new TextDecoder().decode(model.subarray(name.content, name.end)));
      if (!isDefault) kept.push(model.subarray(part.start, part.end));
    }
    const length = [];
    for (let left = kept.reduce((sum, part) => sum + part.length, 0); ; left = Math.floor(left / 128)) {
      length.push(left < 128 ? left : (left % 128) + 128);
      if (left < 128) break;
    }
    parts.push(Uint8Array.of(7 * 8 + 2, ...length), ...kept);
  }
  return joined(parts);
}

// Inputs for `session.run`: those of the call, as {"x": {"type": "float32", "dims": [1, 2], "data": […]}}, and the task's.
export function feedsOf(ort, inputs, adapter) {
  const feeds = {};
  for (const [name, { type, dims, data }] of Object.entries(inputs)) {
    const values = type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
    feeds[name] = new ort.Tensor(type, values, dims);
  }
  for (const [name, { dims, data }] of Object.entries(adapter)) feeds[name] = new ort.Tensor("float32", data, dims);
  return feeds;
}

export async function runTask(ort, model, inputs, adapter) {
  const plain = withoutDefaults(model, new Set(Object.keys(adapter)));
  const session = await ort.InferenceSession.create(plain, { executionProviders: ["wasm"] });
  const outputs = await session.run(feedsOf(ort, inputs, adapter));
  return Object.fromEntries(session.outputNames.map((n) => [n, { dims: outputs[n].dims, data: [...outputs[n].data] }]));
}
