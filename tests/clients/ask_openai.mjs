// The npm client: a picture, whole and streamed with usage; the list of models.
import fs from "node:fs";
import OpenAI from "openai";

const [url, model, picture, question] = process.argv.slice(2);
const data = fs.readFileSync(picture).toString("base64");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", maxRetries: 0 });
const content = [
  { type: "text", text: question },
  { type: "image_url", image_url: { url: `data:image/png;base64,${data}` } },
];
const request = { model, messages: [{ role: "user", content }], temperature: 0, max_tokens: 32 };
const answer = await client.chat.completions.create(request);
const stream = client.chat.completions.stream({ ...request, stream_options: { include_usage: true } });
const streamed = await stream.finalChatCompletion();
const models = [];
for await (const card of client.models.list()) models.push(card.id);
console.log(
  JSON.stringify({
    answer: answer.choices[0].message.content,
    streamed: streamed.choices[0].message.content,
    tokens: [answer.usage.total_tokens, streamed.usage.total_tokens],
    models,
  }),
);
