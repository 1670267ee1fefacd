// A task of an ONNX file in Node, with nothing but onnxruntime-web:
//
//     npm install onnxruntime-web
//     node node.mjs pets.onnx pets.cats.onnx_adapter inputs.json
//
// Without a task, give - as the adapter.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { readAdapter, runTask } from "./adapter.mjs";

const [model, adapter, inputs] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const values = adapter === "-" ? {} : readAdapter(new Uint8Array(await readFile(adapter)));
const outputs = await runTask(ort, new Uint8Array(await readFile(model)), JSON.parse(await readFile(inputs, "utf8")), values);
console.log(JSON.stringify(outputs));
