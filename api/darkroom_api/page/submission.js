// The form that submits latents: files become jobs, one each.

import { Refusal, submit } from "./api.js";

const AT_ONCE = 3;

export class Submission {
  #form;
  #drop;
  #progress;
  #refused;
  #onSubmitted;
  #vaes = new Map();

  /** `onSubmitted` is called after each file, with the Refusal where it was refused. */
  constructor({ form, drop, chosen, progress, refused, onSubmitted }) {
    this.#form = form;
    this.#drop = drop;
    this.#progress = progress;
    this.#refused = refused;
    this.#onSubmitted = onSubmitted;
    const { files, vae } = form.elements;
    const invitation = chosen.textContent;
    files.addEventListener("change", () => {
      const names = Array.from(files.files, (file) => file.name);
      chosen.textContent = names.length > 3 ? `${names.length} files` : names.join(", ") || invitation;
    });
    vae.addEventListener("change", () => this.#offerFormats());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#takeDrops(files);
  }

  /** Offer these VAEs, loaded or not. */
  offer(vaes) {
    const { vae } = this.#form.elements;
    const chosen = vae.value || localStorage.getItem("darkroom.vae") || "demo";
    this.#vaes = new Map(vaes.map((each) => [each.name, each]));
    vae.replaceChildren(...vaes.map(({ name }) => new Option(name)));
    if (this.#vaes.has(chosen)) vae.value = chosen;
    this.#offerFormats();
  }

  #offerFormats() {
    const { vae, format } = this.#form.elements;
    const formats = this.#vaes.get(vae.value)?.formats ?? [];
    const chosen = format.value;
    format.replaceChildren(new Option("as usual", ""), ...formats.map((name) => new Option(name)));
    if (formats.includes(chosen)) format.value = chosen;
  }

  #takeDrops(files) {
    const over = (event) => {
      event.preventDefault();
      this.#drop.classList.toggle("over", event.type === "dragover");
    };
    for (const kind of ["dragover", "dragleave", "drop"]) this.#drop.addEventListener(kind, over);
    this.#drop.addEventListener("drop", (event) => {
      files.files = event.dataTransfer.files;
      files.dispatchEvent(new Event("change"));
    });
  }

  async #send() {
    const { files, vae } = this.#form.elements;
    const button = this.#form.querySelector("button[type=submit]");
    const [waiting, options] = [Array.from(files.files), this.#options()];
    const total = waiting.length;
    // At once, so that what is chosen meanwhile stays.
    files.value = "";
    files.dispatchEvent(new Event("change"));
    localStorage.setItem("darkroom.vae", vae.value);
    this.#refused.replaceChildren();
    button.disabled = true;
    let accepted = 0;
    const work = async () => {
      for (let file = waiting.shift(); file; file = waiting.shift()) {
        if (await this.#sendOne(file, options)) accepted += 1;
        this.#progress.textContent = `${accepted} of ${total} accepted`;
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, work));
    } finally {
      button.disabled = false;
    }
  }

  /** Submit one file; tell whether it was accepted. */
  async #sendOne(file, options) {
    const metadata = JSON.stringify({ file: file.name });
    try {
      await submit(file, new URLSearchParams({ ...options, metadata }));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const line = document.createElement("li");
      line.textContent = `${file.name}: ${error.message}`;
      this.#refused.append(line);
      this.#onSubmitted(error);
      return false;
    }
    this.#onSubmitted(null);
    return true;
  }

  #options() {
    const given = new FormData(this.#form);
    given.delete("files");
    return Object.fromEntries(Array.from(given).filter(([, value]) => value !== ""));
  }
}
