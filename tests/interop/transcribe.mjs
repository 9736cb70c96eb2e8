// node transcribe.mjs FOLDER PROMPT SAMPLES... prints a JSON list of texts, one for each file of float32 samples at 16 kHz.
// The folder is loaded as any other model: nothing is said about its files or its precision.
import { readFileSync } from 'node:fs';
import { AutoProcessor, VoxtralForConditionalGeneration, env } from '@huggingface/transformers';

env.allowRemoteModels = false;

const [folder, prompt, ...files] = process.argv.slice(2);
const processor = await AutoProcessor.from_pretrained(folder);
const model = await VoxtralForConditionalGeneration.from_pretrained(folder);

function samples(file) {
  const bytes = readFileSync(file);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

async function transcribe(file) {
  const inputs = await processor(prompt, samples(file));
  const ids = await model.generate({ ...inputs, do_sample: false });
  const answer = ids.slice(null, [inputs.input_ids.dims.at(-1), null]);
  return processor.batch_decode(answer, { skip_special_tokens: true })[0];
}

const texts = [];
for (const file of files) texts.push(await transcribe(file));
console.log(JSON.stringify(texts));
