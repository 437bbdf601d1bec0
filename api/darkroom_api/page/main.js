// Wires the page: the form, the list, the figures of the queue, and the key where one is asked for.

import { Refusal, key, read } from "./api.js";
import { JobList, duration } from "./jobs.js";
import { Submission } from "./submission.js";

const PERIOD = 2000;
const STEP = 48;
const MOST = 192;

const find = (id) => document.getElementById(id);
const figures = Object.fromEntries(
  Array.from(document.querySelectorAll("[data-figure]"), (each) => [each.dataset.figure, each]),
);

// What is to be said, by whom it comes from; the first that is not empty is shown.
const notices = { service: "", action: "", standing: "" };

let limit = STEP;
let round = 0;

const jobs = new JobList(find("jobs"), find("job"), {
  onChange: refresh,
  onError: (error) => tell("action", error?.message),
});
const submission = new Submission({
  form: find("submit"),
  drop: find("drop"),
  chosen: find("chosen"),
  progress: find("progress"),
  refused: find("refused"),
  onSubmitted: (refusal) => (refusal?.status === 401 ? ask() : refresh()),
});

find("filter").addEventListener("change", refresh);
find("more").addEventListener("click", () => {
  limit = Math.min(limit + STEP, MOST);
  refresh();
});
find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key.keep(event.target.elements.key.value.trim());
  find("ask").close();
  start();
});
find("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});
document.addEventListener("visibilitychange", refresh);
// Without the key there is nothing to go back to.
find("ask").addEventListener("cancel", (event) => event.preventDefault());

start();

/** Read what changes rarely, then follow what changes often. */
async function start() {
  find("forget").hidden = !key.read();
  try {
    submission.offer((await read("v1/vaes")).results);
    tell("standing", await whatIsWrong());
  } catch (error) {
    fail(error);
    if (error instanceof Refusal && error.status === 401) return;
    setTimeout(start, PERIOD);
    return;
  }
  follow();
}

/** Ask what the service cannot do or promise now. */
async function whatIsWrong() {
  try {
    return (await read("readyz")).warnings.join(" ");
  } catch (error) {
    if (error.status !== 503) throw error;
    return "A part of the service cannot be reached now: jobs may have to wait.";
  }
}

/** Refresh now and then, in one chain only, and not while nobody looks. */
async function follow() {
  const mine = (round += 1);
  while (mine === round) {
    if (!document.hidden) await refresh();
    await new Promise((wake) => setTimeout(wake, PERIOD));
  }
}

async function refresh() {
  if (find("ask").open) return;
  const query = new URLSearchParams({ limit });
  if (find("filter").value) query.set("status", find("filter").value);
  try {
    const [page, queue] = await Promise.all([read(`v1/jobs?${query}`), read("v1/queue")]);
    jobs.show(page.results);
    find("none").hidden = page.results.length > 0;
    find("more").hidden = page.next === null || limit === MOST;
    showQueue(queue);
    tell("service", "");
  } catch (error) {
    fail(error);
  }
}

function showQueue(queue) {
  figures.queued.textContent = queue.queued;
  figures.running.textContent = queue.running;
  figures.workers.textContent = queue.workers;
  figures.throughput.textContent = queue.throughput_per_minute;
  const oldest = queue.oldest_queued_seconds;
  figures.oldest.textContent = oldest === null ? "–" : duration(1000 * oldest);
}

function fail(error) {
  if (!(error instanceof Refusal)) throw error;
  if (error.status === 401) ask();
  else tell("service", error.message);
}

/** Say what is wrong, or what the service cannot promise. */
function tell(from, words = "") {
  notices[from] = words;
  const notice = find("notice");
  notice.textContent = Object.values(notices).find(Boolean) ?? "";
  notice.hidden = notice.textContent === "";
}

function ask() {
  round += 1; // nobody follows meanwhile
  find("wrong").hidden = !key.read();
  key.forget();
  if (!find("ask").open) find("ask").showModal();
}
