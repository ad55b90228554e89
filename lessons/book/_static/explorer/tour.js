"use strict";
/* Six experiments: settings, what to predict, what one sees, and the lesson that proves it. */

const ALL = { step: 200, factor: 1, rank: 8, bits: "NF4", merged: false, on: () => true };
const inAttention = (path) => path.includes("self_attn");
const TOUR = [
  {
    title: "Training",
    set: { ...ALL, step: 0 },
    predict: "At step 0, B is zero. Which of the two answers is better? Then choose 10, 25, 50, " +
      "100 and 200: what becomes right first, the form of the answer or its words?",
    look: "At step 0 both answers are equal, because BA is zero. At step 50 the answer has the " +
      "form “name, words, place”, but wrong words. At step 200 the words are right. The base " +
      "is the same at all steps: only A and B were trained.",
    lesson: ["QLoRA in one file", "00_qlora_in_one_file.html"],
  },
  {
    title: "α scales the update",
    set: { ...ALL, factor: 0.5 },
    predict: "ΔW = (α/r)·BA, and α was 16 in training. Now it is half. Is the answer half right? " +
      "Then set α to 0, 1, 2 and 4 times.",
    look: "At half, the name and the place are right. α multiplies ΔW and all its singular " +
      "values, so 0 gives the base. The loss is lowest " +
      "near 1, the value of the training, and at 4 times the text falls apart: twice the α is " +
      "not twice the learning.",
    lesson: ["Two small matrices", "01_two_small_matrices.html"],
  },
  {
    title: "The rank bounds the directions",
    set: { ...ALL, rank: 1 },
    predict: "Keep one of the eight directions of each ΔW, the largest. Then keep 2, 3, 4 and 8. " +
      "How many are needed for a right answer?",
    look: "The rank is the number of singular values that are not zero: ΔW cannot have more " +
      "directions than A has rows. One direction is not enough here, about four are, and the last " +
      "four change little.",
    lesson: ["Is the update of low rank?", "studies/lora/is_the_update_of_low_rank.html"],
  },
  {
    title: "Fewer bits for the base",
    set: { ...ALL, bits: "2 bits" },
    predict: "The adapter was trained on the NF4 base. Below it, put a base of 2 bits. Does the " +
      "adapter still help? Then choose int4 and float32.",
    look: "With 2 bits the weights are too wrong: the adapter lowers the loss only from 5.0 to 4.1. " +
      "int4 takes more bytes than NF4 here and has a larger loss. The loss is lowest on the base " +
      "of the training, NF4: A and B also learned to correct its rounding errors.",
    lesson: ["Four bits", "02_four_bits.html"],
  },
  {
    title: "Which projections carry the task",
    set: { ...ALL, on: inAttention },
    predict: "Only the attention projections are on. Compare with only the MLP (the button " +
      "below the switches). Which of the two is nearer to the full adapter? Then switch " +
      "all on, and off the row q_proj.",
    look: "Attention alone has a loss of 0.83, the MLP alone 1.41, both together 0.03. The task is " +
      "to copy words from the prompt, which attention does; but no single projection and neither " +
      "half is enough. Without q or k the loss rises most.",
    lesson: ["Where to apply LoRA", "studies/lora/where_to_apply.html"],
  },
  {
    title: "Merging into four bits loses small updates",
    set: { ...ALL, step: 10, merged: true },
    predict: "After 10 steps, the adapter lowers the loss from 4.2 to 2.3. Now it is merged and " +
      "rounded to 4 bits again. What remains? Then switch the merge off, and try step 200.",
    look: "The loss is back near that of the base. A weight changes its code only if ΔW carries it " +
      "over the midpoint to the next value. A smaller change disappears: this is the dead zone, " +
      "empty in the second picture of ΔW. At step 200 ΔW is larger, and enough of it remains " +
      "for a right answer.",
    lesson: ["Merging into four bits", "studies/serving/merging_into_four_bits.html"],
  },
];
