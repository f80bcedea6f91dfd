// A formula in TeX becomes MathML, which browsers set themselves; what is not known of it stays as it is written.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const LONGEST = 2000, DEEPEST = 40;

const named = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split(":")));
const LETTERS = named(`alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ lambda:λ mu:μ nu:ν xi:ξ pi:π
  rho:ρ sigma:σ tau:τ upsilon:υ phi:ϕ varphi:φ chi:χ psi:ψ omega:ω Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Phi:Φ Psi:Ψ Omega:Ω
  infty:∞ partial:∂ nabla:∇ ell:ℓ hbar:ℏ Re:ℜ Im:ℑ emptyset:∅ varnothing:∅ aleph:ℵ ldots:… dots:… cdots:⋯ vdots:⋮ ddots:⋱ prime:′ angle:∠ top:⊤ bot:⊥`);
const SIGNS = named(`times:× cdot:⋅ div:÷ pm:± mp:∓ ast:∗ star:⋆ circ:∘ bullet:• oplus:⊕ otimes:⊗ odot:⊙ le:≤ leq:≤ ge:≥ geq:≥ ne:≠ neq:≠ ll:≪ gg:≫
  approx:≈ equiv:≡ sim:∼ simeq:≃ cong:≅ propto:∝ in:∈ notin:∉ ni:∋ subset:⊂ subseteq:⊆ supset:⊃ supseteq:⊇ cup:∪ cap:∩ setminus:∖ land:∧ wedge:∧ lor:∨ vee:∨ neg:¬ lnot:¬
  forall:∀ exists:∃ to:→ rightarrow:→ leftarrow:← leftrightarrow:↔ Rightarrow:⇒ implies:⇒ Leftarrow:⇐ Leftrightarrow:⇔ iff:⇔ mapsto:↦ uparrow:↑ downarrow:↓ longrightarrow:⟶
  mid:| parallel:∥ perp:⊥ models:⊨ vdash:⊢ therefore:∴ because:∵ langle:⟨ rangle:⟩ lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ lbrace:{ rbrace:} vert:| Vert:‖ colon::`);
const LARGE = named("sum:∑ prod:∏ int:∫ iint:∬ oint:∮ bigcup:⋃ bigcap:⋂ bigoplus:⨁ coprod:∐");
const WORDS = new Set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min sup inf lim limsup liminf arg argmax argmin det dim ker gcd deg Pr mod".split(" "));
const UNDER = new Set(["lim", "max", "min", "sup", "inf", "argmax", "argmin", "limsup", "liminf"]);
const ACCENTS = named("hat:^ widehat:^ bar:¯ overline:¯ vec:→ tilde:~ widetilde:~ dot:˙ ddot:¨ underline:_ overbrace:⏞ underbrace:⏟");
const STYLES = named("mathbf:bold boldsymbol:bold bm:bold mathrm:normal operatorname:normal text:normal textbf:bold textrm:normal textit:italic mathit:italic mathsf:sans-serif mathtt:monospace");
const SPACES = { ",": "0.17em", ":": "0.22em", ";": "0.28em", "!": "-0.17em", " ": "0.25em", quad: "1em", qquad: "2em" };
const FENCES = { matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], vmatrix: ["|", "|"], Bmatrix: ["{", "}"], cases: ["{", ""] };

function node(name, children = [], attributes = {}) {
  const made = document.createElementNS(MATHML, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A `math` element, or null where the formula is not whole, too long or too deep. */
export function formula(text, display) {
  if (text.length > LONGEST) return null;
  const tokens = text.match(/\\(?:[A-Za-z]+\*?|[\s\S])|\d+(?:[.,]\d+)*|\s+|[\s\S]/gu) || [];
  try {
    const reader = new Reader(tokens);
    const row = reader.row(() => false);
    return node("math", [row], display ? { display: "block" } : {});
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

class Reader {
  constructor(tokens) { Object.assign(this, { tokens, at: 0, depth: 0 }); }

  blanks() { while (/^\s/.test(this.tokens[this.at] || "")) this.at++; }
  next() {
    if (this.at >= this.tokens.length) throw new SyntaxError("The formula ends too early.");
    return this.tokens[this.at++];
  }
  skip(token) { this.blanks(); if (this.tokens[this.at] !== token) return false; this.at++; return true; }

  /** What stands before a token for which `ends`; that token is left. */
  row(ends) {
    if (++this.depth > DEEPEST) throw new SyntaxError("The formula is too deep.");
    const made = [];
    for (this.blanks(); this.at < this.tokens.length && !ends(this.tokens[this.at]); this.blanks()) made.push(this.scripted());
    this.depth--;
    return made.length === 1 ? made[0] : node("mrow", made);
  }

  /** Between braces, or a single thing. */
  argument() {
    if (!this.skip("{")) return this.atom();
    const inner = this.row((token) => token === "}");
    if (!this.skip("}")) throw new SyntaxError("A brace is not closed.");
    return inner;
  }

  /** The text between braces, letter for letter. */
  words() {
    if (!this.skip("{")) return this.next();
    let text = "";
    for (let open = 1; ; ) {
      const token = this.next();
      open += token === "{" ? 1 : token === "}" ? -1 : 0;
      if (!open) return text;
      text += token;
    }
  }

  scripted() {
    const name = this.tokens[this.at], base = this.atom();
    let under = null, over = null;
    for (this.blanks(); "^_'".includes(this.tokens[this.at] || " "); this.blanks()) {
      const mark = this.next();
      if (mark === "_") under = this.argument();
      else over = mark === "'" ? node("mo", ["′".repeat(1 + this.count("'"))]) : this.argument();
    }
    if (!under && !over) return base;
    const limits = (name[0] === "\\" && name.slice(1) in LARGE && !name.endsWith("int")) || UNDER.has(name.slice(1));
    const kind = limits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    return node(kind[under && over ? 2 : over ? 1 : 0], [base, under, over].filter(Boolean));
  }

  count(token) { let n = 0; while (this.tokens[this.at] === token) { this.at++; n++; } return n; }

  atom() {
    this.blanks();
    const token = this.next();
    if (token === "{") { this.at--; return this.argument(); }
    if (/^\d/.test(token)) return node("mn", [token]);
    if (/^\p{L}/u.test(token)) return node("mi", [token]);
    if ("}&^_".includes(token)) throw new SyntaxError("Something is missing in the formula.");
    if (token[0] !== "\\") return node("mo", [token === "-" ? "−" : token], "()[]".includes(token) ? { stretchy: "false" } : token === "|" ? { stretchy: "false", lspace: "0", rspace: "0" } : {});
    return this.command(token.slice(1));
  }

  command(name) {
    if (name in LETTERS) return node("mi", [LETTERS[name]]);
    if (name in SIGNS) return node("mo", [SIGNS[name]]);
    if (name in LARGE) return node("mo", [LARGE[name]], { largeop: "true" });
    if (WORDS.has(name)) return node("mi", [name]);
    if (name in SPACES) return node("mspace", [], { width: SPACES[name] });
    if (/^[dt]?frac$/.test(name)) return node("mfrac", [this.argument(), this.argument()]);
    if (name === "binom") return node("mrow", [node("mo", ["("]), node("mfrac", [this.argument(), this.argument()], { linethickness: "0" }), node("mo", [")"])]);
    if (name === "sqrt") return this.root();
    if (name in STYLES) return this.styled(name);
    if (name === "mathbb" || name === "mathcal") return node("mi", [lettered(this.words(), name)]);
    if (name in ACCENTS) return node(/^under/.test(name) ? "munder" : "mover", [this.argument(), node("mo", [ACCENTS[name]])], { accent: "true" });
    if (name === "left") return this.fenced();
    if (/^[bB]igg?[lrm]?$/.test(name)) return this.atom();
    if (name === "begin") return this.table();
    if (name === "boxed") return this.argument();
    if (/^(?:display|text|script)style$|^limits$|^nonumber$/.test(name)) return node("mrow");
    if (/^[^A-Za-z]$/.test(name)) return node("mo", [name === "|" ? "‖" : name]);
    throw new SyntaxError(`\\${name} is not known.`);
  }

  root() {
    if (!this.skip("[")) return node("msqrt", [this.argument()]);
    const index = this.row((token) => token === "]");
    this.skip("]");
    return node("mroot", [this.argument(), index]);
  }

  styled(name) {
    const text = this.words().replace(/\\([A-Za-z]+) ?/g, (whole, word) => LETTERS[word] || whole);
    const made = node(/^(?:text|operatorname)/.test(name) ? "mtext" : "mi", [text.replace(/^ | $/g, "\u00a0")], /it$|ic$/.test(name) ? {} : { mathvariant: "normal" });
    made.classList.add(`m-${STYLES[name]}`);
    return made;
  }

  fenced() {
    const sign = () => { this.blanks(); const token = this.next(), name = token.slice(1); return token === "." ? "" : SIGNS[name] || (token[0] === "\\" ? name : token); };
    const open = sign(), inner = this.row((token) => token === "\\right");
    if (!this.skip("\\right")) throw new SyntaxError("\\left has no \\right.");
    const close = sign();
    return node("mrow", [open && node("mo", [open], { stretchy: "true" }), inner, close && node("mo", [close], { stretchy: "true" })].filter(Boolean));
  }

  table() {
    const kind = this.words().replace("*", "");
    if (kind === "array") this.words();
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(node("mtd", [this.row((token) => token === "&" || token === "\\\\" || token === "\\end")]));
      const token = this.next();
      if (token === "\\\\") rows.push([]);
      if (token === "\\end") break;
    }
    this.words();
    const aligned = /^(?:align|aligned|split|gathered|equation)$/.test(kind);
    const body = node("mtable", rows.map((cells) => node("mtr", cells)), { class: kind === "cases" ? "m-left" : aligned ? "m-align" : "", displaystyle: aligned });
    const [open, close] = FENCES[kind] || ["", ""];
    return node("mrow", [open && node("mo", [open], { stretchy: "true" }), body, close && node("mo", [close], { stretchy: "true" })].filter(Boolean));
  }
}

/** Letters of the blackboard or of a script, from where Unicode has them. */
function lettered(text, name) {
  const early = { mathbb: named("C:ℂ H:ℍ N:ℕ P:ℙ Q:ℚ R:ℝ Z:ℤ"), mathcal: named("B:ℬ E:ℰ F:ℱ H:ℋ I:ℐ L:ℒ M:ℳ R:ℛ") }[name];
  const first = { mathbb: 0x1d538, mathcal: 0x1d49c }[name];
  return text.replace(/[A-Z]/g, (letter) => early[letter] || String.fromCodePoint(first + letter.charCodeAt(0) - 65));
}
