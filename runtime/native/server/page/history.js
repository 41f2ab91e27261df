// Images made before, newest first: in the browser's database where it has one for us, else in memory.
const KEPT = 24;

class Past {
  #database = null;
  entries = [];

  async open() {
    try {
      const opening = indexedDB.open("arcflow", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
      this.#database = await Past.#done(opening);
      this.entries = (await Past.#done(this.#store("readonly").getAll())).reverse();
    } catch {
      this.#database = null;
    }
  }

  // Gives the entries that had to go. Partial images are kept in memory alone: they are many.
  async add(entry) {
    const { partials, ...kept } = entry;
    try {
      if (this.#database) entry.id = await Past.#done(this.#store("readwrite").add(kept));
    } catch {
      this.#database = null;  // full, or taken away
    }
    this.entries.unshift(entry);
    const gone = this.entries.splice(KEPT);
    for (const { id } of gone) this.#database && id && this.#store("readwrite").delete(id);
    return gone;
  }

  async clear() {
    this.entries = [];
    if (this.#database) await Past.#done(this.#store("readwrite").clear());
  }

  #store(mode) {
    return this.#database.transaction("images", mode).objectStore("images");
  }

  static #done(request) {
    return new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  }
}
