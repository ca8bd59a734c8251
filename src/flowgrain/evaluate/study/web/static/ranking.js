/* The order of the pictures of one item on one dimension, while it is being made. No page in here. */

export class Ranking {
  #slots;
  #ranks = new Map(); // slot -> rank, 1 the best
  #next = 1;

  /** `slots` in the order of their places; `answer`: "rank" all or choose the "best"; `ties`: may two share a rank. */
  constructor(slots, answer, ties) {
    this.#slots = slots;
    this.answer = answer;
    this.ties = ties && answer === "rank";
    /** Ranks there are to give. */
    this.places = answer === "rank" ? slots.length : 1;
  }

  /** The rank that a tap gives next; null when every picture has one and none was asked for. */
  get next() {
    return this.#next;
  }

  rankOf(slot) {
    return this.#ranks.get(slot) ?? null;
  }

  /** Slots that have `rank`, in the order of their places. */
  at(rank) {
    return this.#slots.filter((slot) => this.#ranks.get(slot) === rank);
  }

  get placed() {
    return this.#ranks.size;
  }

  get complete() {
    return this.answer === "best" ? this.placed === 1 : this.placed === this.#slots.length;
  }

  /** Slots without a rank. */
  get missing() {
    return this.#slots.filter((slot) => !this.#ranks.has(slot));
  }

  /** Gives a rank. Without ties, the picture that had it takes the old rank of `slot`, if it had any. */
  place(slot, rank) {
    const before = this.rankOf(slot);
    if (!this.ties) {
      for (const other of this.at(rank).filter((found) => found !== slot)) {
        if (before === null) this.#ranks.delete(other);
        else this.#ranks.set(other, before);
      }
    }
    this.#ranks.set(slot, rank);
    this.#advance();
  }

  /** Gives the next rank, or takes the rank back from a picture that has one; that rank is then the next. */
  tap(slot) {
    if (this.#ranks.has(slot)) this.remove(slot);
    else this.place(slot, this.#next ?? this.#firstFree() ?? this.places);
  }

  remove(slot) {
    const rank = this.rankOf(slot);
    if (rank === null) return;
    this.#ranks.delete(slot);
    this.#next = rank;
  }

  /** Makes `rank` the one that the next tap gives. */
  choose(rank) {
    this.#next = rank;
  }

  clear() {
    this.#ranks.clear();
    this.#next = 1;
  }

  /** Tiers as the server takes them: best first, no empty one. Only for a complete ranking. */
  tiers() {
    if (this.answer === "best") return [this.at(1), this.missing];
    return Array.from({ length: this.places }, (_, index) => this.at(index + 1)).filter((tier) => tier.length > 0);
  }

  /** Takes over tiers given before. */
  load(tiers) {
    this.#ranks.clear();
    const given = this.answer === "best" ? tiers.slice(0, 1) : tiers;
    given.forEach((tier, index) => tier.forEach((slot) => this.#ranks.set(slot, index + 1)));
    this.#advance();
  }

  /** Ranks by slot, to keep an unfinished answer; `restore` takes them back. */
  ranks() {
    return Object.fromEntries(this.#ranks);
  }

  restore(ranks) {
    this.#ranks.clear();
    for (const slot of this.#slots) {
      const rank = ranks[slot];
      if (Number.isInteger(rank) && rank >= 1 && rank <= this.places) this.#ranks.set(slot, rank);
    }
    this.#advance();
  }

  #advance() {
    this.#next = this.complete ? null : (this.#firstFree() ?? this.places);
  }

  #firstFree() {
    for (let rank = 1; rank <= this.places; rank += 1) if (this.at(rank).length === 0) return rank;
    return null;
  }
}
