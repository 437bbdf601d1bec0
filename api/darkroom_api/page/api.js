// The service's calls, with the key of this tab.

const KEY = "darkroom.key";
const PATIENCE = 5;
const LONGEST_PAUSE = 30;

/** An answer other than success. `status` is HTTP's, 0 where nothing answered. */
export class Refusal extends Error {
  constructor(status, detail, pause = 0) {
    super(detail);
    this.status = status;
    this.pause = pause;
  }
}

export const key = {
  read: () => sessionStorage.getItem(KEY),
  keep: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Make one call; give the body, read as `as` says, or throw a Refusal. */
export async function call(path, { as = "text", headers = {}, ...options } = {}) {
  const known = key.read();
  const credentials = known ? { Authorization: `Bearer ${known}` } : {};
  try {
    const response = await fetch(path, { ...options, headers: { ...credentials, ...headers } });
    if (response.ok) return await response[as]();
    throw await refusal(response);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    // Nothing answers or the answer broke off; or the key has characters that no header can carry.
    throw new Refusal(0, "The service does not answer.");
  }
}

export const read = (path) => call(path, { as: "json" });

async function refusal(response) {
  const type = response.headers.get("Content-Type") ?? "";
  const detail = type.startsWith("application/problem+json")
    ? (await response.json()).detail
    : `${response.status} ${response.statusText}`;
  return new Refusal(response.status, detail, Number(response.headers.get("Retry-After")));
}

/**
 * Submit one file. Where the service says "later" this waits and tries again, under one key, so
 * that nothing is submitted twice.
 */
export async function submit(file, options) {
  const request = {
    method: "POST",
    body: file,
    headers: { "Content-Type": "application/x-safetensors", "Idempotency-Key": randomKey() },
  };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call(`v1/jobs?${options}`, { as: "json", ...request });
    } catch (error) {
      const later = error instanceof Refusal && [0, 429, 503].includes(error.status);
      if (!later || attempt === PATIENCE) throw error;
      const seconds = Math.min(error.pause || 2 ** attempt / 2, LONGEST_PAUSE);
      await new Promise((wake) => setTimeout(wake, 1000 * seconds));
    }
  }
}

// crypto.randomUUID exists in secure contexts only, and this page may be served by plain HTTP.
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
