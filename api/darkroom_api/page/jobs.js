// The list of jobs: one card each, changed only where its job has changed.

import { call } from "./api.js";

const UNFINISHED = ["queued", "running"];
const SHOWN_PICTURES = 4;

export class JobList {
  #list;
  #template;
  #onChange;
  #onError;
  #cards = new Map();

  /** `onChange` is called when a job was canceled or deleted here, `onError` with what went wrong. */
  constructor(list, template, { onChange, onError }) {
    this.#list = list;
    this.#template = template;
    this.#onChange = onChange;
    this.#onError = onError;
  }

  /** Show these jobs and no others, in this order. */
  show(jobs) {
    const shown = new Set(jobs.map((job) => job.id));
    for (const [id, card] of this.#cards) {
      if (!shown.has(id)) {
        card.clear();
        card.element.remove();
        this.#cards.delete(id);
      }
    }
    let place = this.#list.firstElementChild;
    for (const job of jobs) {
      const card = this.#cards.get(job.id) ?? this.#add(job);
      card.show(job);
      // Moving an element that is in its place would stop a video and drop the focus.
      if (card.element === place) place = place.nextElementSibling;
      else this.#list.insertBefore(card.element, place);
    }
  }

  #add(job) {
    const element = this.#template.content.firstElementChild.cloneNode(true);
    const card = new Card(element, job.id);
    card.on(".cancel", () => this.#end(`v1/jobs/${job.id}/cancel`, "POST"));
    card.on(".delete", async () => {
      if (confirm(`Delete ${title(job)}, its latents and what was made of them?`)) {
        await this.#end(`v1/jobs/${job.id}`, "DELETE");
      }
    });
    this.#cards.set(job.id, card);
    return card;
  }

  async #end(path, method) {
    try {
      await call(path, { method });
      this.#onError(null);
    } catch (error) {
      this.#onError(error);
    }
    this.#onChange();
  }
}

class Card {
  #shown = "";
  #pictured = false;

  constructor(element, id) {
    this.element = element;
    this.id = id;
    element.dataset.id = id;
  }

  on(selector, action) {
    const button = this.#find(selector);
    button.addEventListener("click", async () => {
      button.disabled = true;
      await action();
      button.disabled = false;
    });
  }

  show(job) {
    // Links are signed anew each time, for an hour: they are no change, but the old ones end.
    for (const link of this.element.querySelectorAll("[data-output]")) {
      link.href = job.outputs[link.dataset.output]?.url ?? link.href;
    }
    const facts = JSON.stringify({ ...job, outputs: job.outputs.length });
    if (facts === this.#shown) return;
    this.#shown = facts;
    const unfinished = UNFINISHED.includes(job.status);
    this.#write(".title", title(job));
    this.#write(".badge", job.status).dataset.status = job.status;
    this.#write(".detail", detail(job));
    this.#write(".facts", factsOf(job));
    const progress = this.#find("progress");
    progress.hidden = job.status !== "running";
    progress.value = job.progress;
    this.#find(".cancel").hidden = !unfinished;
    this.#write("pre", JSON.stringify(job, null, 2));
    if (job.status === "succeeded" && !this.#pictured) this.#picture(job);
    if (job.status !== "succeeded") this.clear();
  }

  /** Let go of the pictures. */
  clear() {
    const place = this.#find(".pictures");
    for (const { src } of place.querySelectorAll("[src^='blob:']")) URL.revokeObjectURL(src);
    place.replaceChildren();
  }

  #picture(job) {
    this.#pictured = true;
    const pictures = job.outputs.slice(0, SHOWN_PICTURES).map((output, index) => {
      const words = `${job.vae}, ${index + 1} of ${job.outputs.length}`;
      const shown = view(output, words, () => fromService(job.id, index));
      if (shown instanceof HTMLVideoElement) return shown; // it has controls of its own
      const link = document.createElement("a");
      Object.assign(link, { href: output.url, target: "_blank", rel: "noopener" });
      link.dataset.output = index;
      link.append(shown);
      return link;
    });
    const place = this.#find(".pictures");
    place.replaceChildren(...pictures);
    place.classList.toggle("many", pictures.length > 1);
  }

  #write(selector, text) {
    const element = this.#find(selector);
    element.textContent = text;
    return element;
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }
}

/** Show an output: a picture, a film, or the words for what is neither. */
function view(output, words, otherwise) {
  const [kind] = output.content_type.split("/");
  if (kind !== "image" && kind !== "video") {
    const text = document.createElement("span");
    text.textContent = `${output.content_type}, ${size(output.bytes)}`;
    return text;
  }
  const element = document.createElement(kind === "image" ? "img" : "video");
  if (kind === "image") Object.assign(element, { alt: words, loading: "lazy" });
  else Object.assign(element, { muted: true, loop: true, controls: true, preload: "metadata" });
  // The store may be out of this browser's reach, and the service is not.
  element.addEventListener(
    "error",
    async () => {
      try {
        element.src = URL.createObjectURL(await otherwise());
      } catch {
        element.replaceWith(words);
      }
    },
    { once: true },
  );
  element.src = output.url;
  return element;
}

function fromService(id, index) {
  return call(`v1/jobs/${id}/result?index=${index}&redirect=false`, { as: "blob" });
}

// Metadata is the caller's: `file` need not be what this page writes there.
function title(job) {
  const name = job.name ?? job.metadata.file;
  return typeof name === "string" && name !== "" ? name : job.id;
}

function detail(job) {
  switch (job.status) {
    case "queued":
      return job.queue_position === null ? "" : `${job.queue_position} before it`;
    case "running":
      return `${Math.round(100 * job.progress)} %`;
    case "succeeded":
      return `decoded in ${duration(job.timings.decode)}`;
    default:
      return job.error?.detail ?? "";
  }
}

function factsOf(job) {
  const [output] = job.outputs;
  const sizes = output ? [`${output.width} × ${output.height}`] : [];
  if (job.outputs.length > 1) sizes.push(`${job.outputs.length} files`);
  if (output?.num_frames) sizes.push(`${output.num_frames} frames`);
  if (output) sizes.push(size(job.outputs.reduce((sum, each) => sum + each.bytes, 0)));
  const at = new Date(job.created_at).toLocaleString();
  return [`${job.vae} → ${job.format}`, job.latents.shape.join(" × "), ...sizes, at].join(" · ");
}

export function duration(milliseconds) {
  if (milliseconds === undefined) return "–";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  const unit = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${(bytes / 1000 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}
