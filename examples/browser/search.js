// Search codes of documents in the browser: a float query, encoded here, is scored against every code.

import { AutoModel, AutoTokenizer, Tensor, env } from "./transformers/transformers.min.js";

[env.allowLocalModels, env.allowRemoteModels] = [true, false];
env.localModelPath = new URL(".", import.meta.url).pathname; // of a whole address it would read no tokenizer
env.backends.onnx.wasm.wasmPaths = new URL("transformers/", import.meta.url).href;
env.backends.onnx.wasm.numThreads = 1; // more need headers that a plain file server does not send

const TYPES = { "|i1": Int8Array, "|u1": Uint8Array, "<f4": Float32Array };

/** Read a .npy file of two dimensions: its values, row after row, and its shape. */
async function readNpy(name) {
  const bytes = await (await get(name)).arrayBuffer();
  const [start, length] = [10, new DataView(bytes).getUint16(8, true)]; // version 1.0, which NumPy writes for such arrays
  const header = new TextDecoder("latin1").decode(new Uint8Array(bytes, start, length));
  const [, type] = header.match(/'descr': '([^']+)'/);
  const [, rows, columns] = header.match(/'shape': \((\d+), (\d+)\)/);
  return { values: new TYPES[type](bytes, start + length), shape: [Number(rows), Number(columns)] };
}

async function get(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

/** Documents as codes, and the score of each for a query: the cosine of st_dimreduce.search. */
class Codes {
  /**
   * @param codes What st_dimreduce.quantize gave: (n, width).
   * @param levels Of packed codes the numbers that each of the 256 bytes stands for: (256, dimensions per byte).
   */
  constructor(codes, levels) {
    [this.count, this.width] = codes.shape;
    this.codes = codes.values;
    this.levels = levels?.values;
    this.perByte = levels ? levels.shape[1] : 1;
  }

  score(query) {
    const scores = new Float32Array(this.count);
    const norm = Math.hypot(...query) || 1;
    for (let row = 0; row < this.count; row++) {
      let [product, squares] = [0, 0];
      for (let i = 0; i < query.length; i++) {
        const code = this.codes[row * this.width + Math.floor(i / this.perByte)];
        const level = this.levels ? this.levels[code * this.perByte + (i % this.perByte)] : code;
        product += level * query[i];
        squares += level * level;
      }
      scores[row] = product / norm / (Math.sqrt(squares) || 1);
    }
    return scores;
  }

  search(query, count = 10) {
    const scores = this.score(query);
    const rows = [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
    return rows.slice(0, count).map((row) => ({ row, score: scores[row] }));
  }
}

/** The exported model: a query's embedding is an output of the graph, so that nothing is pooled here. */
class Encoder {
  static async load({ dtype, max_seq_length, prompt }) {
    const [tokenizer, model] = await Promise.all([
      AutoTokenizer.from_pretrained("model"),
      AutoModel.from_pretrained("model", { dtype, device: "wasm" }),
    ]);
    return Object.assign(new Encoder(), { tokenizer, model, longest: max_seq_length, prompt });
  }

  async encode(text) {
    // transformers.js would cut a long text's last token, [SEP], off too: cut here, and keep it.
    let ids = this.tokenizer(this.prompt + text).input_ids.data;
    if (ids.length > this.longest) ids = BigInt64Array.of(...ids.slice(0, this.longest - 1), ids.at(-1));
    const shape = [1, ids.length];
    const outputs = await this.model({
      input_ids: new Tensor("int64", ids, shape),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    });
    return outputs.sentence_embedding.data;
  }
}

const [form, input, button, status, list] = ["form", "#q", "button", "#status", "#answers"].map((name) =>
  document.querySelector(name),
);

async function start() {
  const settings = await (await get("settings.json")).json();
  const [texts, codes, levels, encoder] = await Promise.all([
    get("texts.json").then((answer) => answer.json()),
    readNpy("codes.npy"),
    settings.packed ? readNpy("levels.npy") : undefined,
    Encoder.load(settings),
  ]);
  const documents = new Codes(codes, levels);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => answer(input.value, { documents, texts, encoder }));
  });
  button.disabled = false;
  status.textContent = `${documents.count} documents, ${documents.width} bytes each.`;
}

async function answer(query, { documents, texts, encoder }) {
  if (!query.trim()) throw new Error("The query is empty: type what to look for.");
  const began = performance.now();
  const embedding = await encoder.encode(query);
  const encoded = performance.now();
  const found = documents.search(embedding);
  const [encoding, searching] = [encoded - began, performance.now() - encoded].map((time) => time.toFixed(1));
  list.replaceChildren(...found.map(({ row, score }) => item(texts[row], row, score)));
  status.textContent = `Encoded in ${encoding} ms, searched in ${searching} ms.`;
}

function item(text, row, score) {
  const [line, number] = [document.createElement("li"), document.createElement("data")];
  line.dataset.document = row;
  number.value = score;
  number.textContent = score.toFixed(4);
  line.append(number, text);
  return line;
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    status.textContent = error.message;
  }
}

guarded(start);
