// OpenAI's Node client, as it comes, against a running system. Usage: node calls.mjs BASE_URL
// Writes one JSON object: what each call came to. test_openai_clients.py reads it.

import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none needed", maxRetries: 0, timeout: 300_000 });
const few = { num_inference_steps: 3, seed: 7 };
const input = JSON.parse(await new Promise((resolve) => {
  let text = "";
  process.stdin.on("data", (piece) => (text += piece)).on("end", () => resolve(text));
}));
const file = (base64, name) => toFile(Buffer.from(base64, "base64"), name, { type: "image/png" });
const isPng = (base64) => Buffer.from(base64, "base64").subarray(1, 4).toString() === "PNG";

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return null;
}

async function streamed(call) {
  const events = [];
  for await (const event of await call) events.push(event);
  return events;
}

const results = {};

const generated = await client.images.generate({ prompt: "draw a snowman at night", ...few });
results.generation = { isPng: isPng(generated.data[0].b64_json), prompt: generated.data[0].revised_prompt };

const events = await streamed(
  client.images.generate({ prompt: "draw a snowman at night", stream: true, partial_images: 2, ...few, num_inference_steps: 40 }),
);
results.stream = events.map((event) => ({ type: event.type, index: event.partial_image_index, isPng: isPng(event.b64_json) }));

const edited = await client.images.edit({
  image: await file(input.image, "image.png"),
  mask: await file(input.mask, "mask.png"),
  prompt: "a red ball",
  ...few,
});
results.edit = { isPng: isPng(edited.data[0].b64_json) };

const varied = await client.images.createVariation({ image: await file(input.image, "image.png"), response_format: "url", ...few });
results.variation = { url: varied.data[0].url };

results.models = [];
for await (const model of client.models.list()) results.models.push(model.id);

const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: "draw it at night" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${input.image}` } },
    ],
  },
];
const chunks = await streamed(client.chat.completions.create({ model: "llmga-tiny", messages, temperature: 0, stream: true }));
results.chat = {
  text: chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
  end: chunks.at(-1).choices[0].finish_reason,
};

results.refusals = [
  await refused(() => client.images.generate({ prompt: "a", n: 0 })),
  await refused(() => client.images.generate({ prompt: "a", model: "gpt-image-2" })),
  await refused(() => client.chat.completions.create({ model: "gpt-5", messages: [{ role: "user", content: "hi" }] })),
  await refused(() => client.images.generate({ prompt: "x".repeat(30_000_000) })),
];

process.stdout.write(JSON.stringify(results));
