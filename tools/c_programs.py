# ruff: noqa: E501 (C text)
"""Small C programs of twenty families, written from templates with random types, constants and choice of functions.

They are subjects for compilers: each is one file of functions that a linker could see from outside, so that none of
them may be dropped. Programs of one family share templates; families share nothing.
"""

from collections.abc import Callable

import numpy as np

Template = Callable[[np.random.Generator], str]

HEAD = """typedef unsigned long size_t; typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t; typedef unsigned uint32_t;
typedef long int64_t; typedef unsigned long uint64_t;
size_t strlen(const char *); int strcmp(const char *, const char *); int strncmp(const char *, const char *, size_t);
char *strncpy(char *, const char *, size_t); void *memset(void *, int, size_t);
void *memcpy(void *, const void *, size_t); int memcmp(const void *, const void *, size_t);
void *malloc(size_t); void *calloc(size_t, size_t); void free(void *);
void qsort(void *, size_t, size_t, int (*)(const void *, const void *));
"""
"""Declarations instead of headers: preprocessing those would take as long as the compilation."""
INTEGERS = ("int", "long", "short", "unsigned", "uint8_t", "int64_t", "uint32_t")
FLOATS = ("float", "double")


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _number(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _some(rng: np.random.Generator, pieces: list[str], least: int) -> str:
    """From half of ``least`` to one more than it of the pieces, in random order."""
    count = _number(rng, least // 2 + 1, least + 1)
    return "\n".join(pieces[i] for i in rng.permutation(len(pieces))[:count])


def reductions(rng: np.random.Generator) -> str:
    """Loops over arrays that end in one number or write one array."""
    t, u = _pick(rng, *INTEGERS, *FLOATS), _pick(rng, "int", "long", "double")
    n, k = _number(rng, 8, 200), _number(rng, 2, 9)
    op = _pick(rng, "+", "-", "*")
    return _some(rng, [
        f"{u} total(const {t} *a, int n) {{ {u} s = 0; for (int i = 0; i < n; i++) s += a[i] {op} {k}; return s; }}",
        f"{u} dot(const {t} *a, const {t} *b) {{ {u} s = 0; for (int i = 0; i < {n}; i++) s += a[i] * b[i]; return s; }}",
        f"int above(const {t} *a, int n, {t} x) {{ int c = 0; for (int i = 0; i < n; i++) if (a[i] > x) c += {k};"
        " return c; }",
        f"{t} largest(const {t} *a, int n) {{ {t} m = a[0]; for (int i = 1; i < n; i++) m = a[i] > m ? a[i] : m;"
        " return m; }",
        f"void scale({t} *a, const {t} *b, int n) {{ for (int i = 0; i < n; i++) a[i] = b[i] {op} {k} + a[i]; }}",
        f"void prefix({t} *a, int n) {{ for (int i = 1; i < n; i++) a[i] += a[i - 1]; }}",
        f"void gather({t} *a, const {t} *b, const int *p) {{ for (int i = 0; i < {n}; i++) a[i] = b[p[i]]; }}",
        f"int where(const {t} *a, int n, {t} x) {{ for (int i = n - 1; i >= 0; i -= {k}) if (a[i] == x) return i;"
        " return -1; }",
    ], 4)  # fmt: skip


def stencils(rng: np.random.Generator) -> str:
    """Neighbourhoods in grids of two and three dimensions."""
    t, w, h = _pick(rng, "float", "double", "int"), _number(rng, 8, 64), _number(rng, 8, 64)
    a, b = _number(rng, 1, 5), _number(rng, 1, 9)
    return _some(rng, [
        f"void five({t} o[{h}][{w}], {t} x[{h}][{w}]) {{ for (int i = 1; i < {h} - 1; i++) for (int j = 1; j < {w} - 1;"
        f" j++) o[i][j] = {a} * x[i][j] + x[i - 1][j] + x[i + 1][j] + x[i][j - 1] + x[i][j + 1]; }}",
        f"void nine({t} *o, const {t} *x, int w, int h) {{ for (int i = 1; i < h - 1; i++) for (int j = 1; j < w - 1;"
        f" j++) {{ {t} s = 0; for (int u = -1; u <= 1; u++) for (int v = -1; v <= 1; v++) s += x[(i + u) * w + j + v];"
        f" o[i * w + j] = s / {b}; }} }}",
        f"void cube({t} *o, const {t} *x, int n) {{ for (int i = 1; i < n - 1; i++) for (int j = 1; j < n - 1; j++)"
        f" for (int k = 1; k < n - 1; k++) {{ int c = (i * n + j) * n + k; o[c] = {b} * x[c] - x[c - 1] - x[c + 1] -"
        " x[c - n] - x[c + n] - x[c - n * n] - x[c + n * n]; } }",
        f"void edges({t} g[{h}][{w}]) {{ for (int i = 0; i < {h}; i++) {{ g[i][0] = g[i][1]; g[i][{w} - 1] ="
        f" g[i][{w} - 2]; }} for (int j = 0; j < {w}; j++) {{ g[0][j] = g[1][j]; g[{h} - 1][j] = g[{h} - 2][j]; }} }}",
        "int life(const char *x, char *o, int n) { int c = 0; for (int i = 0; i < n; i++) for (int j = 0; j < n; j++)"
        " { int s = 0; for (int d = 0; d < 9; d++) if (d != 4) s += x[(i + d / 3 - 1 + n) % n * n + (j + d % 3 - 1 + n)"
        " % n]; o[i * n + j] = s == 3 || (s == 2 && x[i * n + j]); c += o[i * n + j]; } return c; }",
    ], 3)  # fmt: skip


def matrices(rng: np.random.Generator) -> str:
    """Dense linear algebra of fixed and of given sizes."""
    t, n = _pick(rng, "float", "double", "int"), _number(rng, 3, 48)
    tile = int(2 ** rng.integers(2, 5))
    f = _pick(rng, "float", "double")
    return _some(rng, [
        f"void multiply({t} c[{n}][{n}], {t} a[{n}][{n}], {t} b[{n}][{n}]) {{ for (int i = 0; i < {n}; i++) for (int j"
        f" = 0; j < {n}; j++) {{ {t} s = 0; for (int k = 0; k < {n}; k++) s += a[i][k] * b[k][j]; c[i][j] = s; }} }}",
        f"void tiled({t} *c, const {t} *a, const {t} *b, int n) {{ for (int i = 0; i < n; i += {tile}) for (int j = 0; j"
        f" < n; j += {tile}) for (int k = 0; k < n; k++) for (int u = 0; u < {tile}; u++) for (int v = 0; v < {tile};"
        " v++) c[(i + u) * n + j + v] += a[(i + u) * n + k] * b[k * n + j + v]; }",
        f"void transpose({t} *a, int n) {{ for (int i = 0; i < n; i++) for (int j = i + 1; j < n; j++) {{ {t} s ="
        " a[i * n + j]; a[i * n + j] = a[j * n + i]; a[j * n + i] = s; } }",
        f"int factor({f} *a, int n) {{ for (int k = 0; k < n; k++) {{ if (a[k * n + k] == 0) return k + 1; for (int i ="
        f" k + 1; i < n; i++) {{ {f} l = a[i * n + k] / a[k * n + k]; a[i * n + k] = l; for (int j = k + 1; j < n; j++)"
        " a[i * n + j] -= l * a[k * n + j]; } } return 0; }",
        f"void times({t} *y, const {t} *a, const {t} *x, int m, int n) {{ for (int i = 0; i < m; i++) {{ y[i] = 0; for"
        " (int j = 0; j < n; j++) y[i] += a[i * n + j] * x[j]; } }",
        f"{t} trace({t} a[{n}][{n}]) {{ {t} s = 0; for (int i = 0; i < {n}; i++) s += a[i][i]; return s; }}",
        f"void solve({f} *x, const {f} *l, const {f} *b, int n) {{ for (int i = 0; i < n; i++) {{ {f} s = b[i]; for"
        " (int j = 0; j < i; j++) s -= l[i * n + j] * x[j]; x[i] = s / l[i * n + i]; } }",
    ], 3)  # fmt: skip


def recursion(rng: np.random.Generator) -> str:
    """Functions that call themselves."""
    t, k = _pick(rng, "int", "long", "unsigned"), _number(rng, 2, 9)
    return "extern void visit(int, int, int);\n" + _some(rng, [
        f"{t} fib({t} n) {{ return n < {k} ? n : fib(n - 1) + fib(n - 2); }}",
        f"{t} power({t} b, unsigned e) {{ if (!e) return 1; {t} h = power(b, e / 2); return e & 1 ? h * h * b : h * h; }}",
        f"{t} gcd({t} a, {t} b) {{ return b ? gcd(b, a % b) : a; }}",
        f"{t} ackermann({t} m, {t} n) {{ if (m == 0) return n + 1; if (n == 0) return ackermann(m - 1, {k}); return"
        " ackermann(m - 1, ackermann(m, n - 1)); }",
        "void hanoi(int n, int a, int b, int c) { if (n) { hanoi(n - 1, a, c, b); visit(n, a, c); hanoi(n - 1, b, a, c);"
        " } }",
        "void permute(int *a, int i, int n) { if (i == n) { visit(a[0], a[n - 1], n); return; } for (int j = i; j < n;"
        " j++) { int s = a[i]; a[i] = a[j]; a[j] = s; permute(a, i + 1, n); s = a[i]; a[i] = a[j]; a[j] = s; } }",
        f"int queens(int n, int row, unsigned c, unsigned d, unsigned e) {{ if (row == n) return {k}; int s = 0; for"
        " (int j = 0; j < n; j++) { unsigned m = 1u << j, p = 1u << (row + j), q = 1u << (row - j + n); if (!(c & m) &&"
        " !(d & p) && !(e & q)) s += queens(n, row + 1, c | m, d | p, e | q); } return s; }",
        f"{t} ways(const {t} *coins, int n, {t} sum) {{ if (sum == 0) return 1; if (n == 0 || (long)sum < 0) return 0;"
        " return ways(coins, n - 1, sum) + ways(coins, n, sum - coins[n - 1]); }",
    ], 4)  # fmt: skip


def strings(rng: np.random.Generator) -> str:
    """Text handled byte by byte."""
    c, n = _pick(rng, "' '", "','", "';'", "'/'"), _number(rng, 16, 128)
    return _some(rng, [
        "size_t length(const char *s) { const char *p = s; while (*p) p++; return p - s; }",
        "void reverse(char *s) { size_t n = strlen(s); for (size_t i = 0; i < n / 2; i++) { char t = s[i]; s[i] ="
        " s[n - 1 - i]; s[n - 1 - i] = t; } }",
        f"int words(const char *s) {{ int n = 0, in = 0; for (; *s; s++) if (*s == {c}) in = 0; else if (!in) {{ in = 1;"
        " n++; } return n; }",
        "int palindrome(const char *s) { int i = 0, j = (int)strlen(s) - 1; while (i < j) if (s[i++] != s[j--]) return"
        " 0; return 1; }",
        "void upper(char *s) { for (; *s; s++) if (*s >= 'a' && *s <= 'z') *s -= 'a' - 'A'; }",
        "int order(const char *a, const char *b) { while (*a && *a == *b) { a++; b++; } return (unsigned char)*a -"
        " (unsigned char)*b; }",
        f"int split(char *s, char **out) {{ int n = 0; while (*s && n < {n}) {{ out[n++] = s; while (*s && *s != {c}) s++;"
        f" if (*s == {c}) *s++ = 0; }} return n; }}",
        "const char *find(const char *s, const char *p) { size_t n = strlen(p); for (; *s; s++) if (!strncmp(s, p, n))"
        " return s; return 0; }",
        f"void pad(char *o, const char *s) {{ char b[{n}]; size_t k = strlen(s); memset(b, {c}, sizeof b); memcpy(b, s,"
        f" k < {n} ? k : {n}); memcpy(o, b, sizeof b); }}",
        "int match(const char *p, const char *s) { if (!*p) return !*s; if (*p == '*') return match(p + 1, s) || (*s &&"
        " match(p, s + 1)); return *s && (*p == '?' || *p == *s) && match(p + 1, s + 1); }",
    ], 5)  # fmt: skip


def parsers(rng: np.random.Generator) -> str:
    """A recursive-descent calculator over a cursor."""
    t = _pick(rng, "long", "double", "int")
    extra = "" if t == "double" else "case '%': n++; v = v % factor(p); break;"
    relations = _pick(rng, "", "if (**p == '<') { (*p)++; return v < sum(p); } if (**p == '>') { (*p)++; return v > "
                      "sum(p); }")  # fmt: skip
    names = _number(rng, 3, 26)
    fraction = (
        "if (**p == '.') { double f = 1; (*p)++; while (**p >= '0' && **p <= '9') v += (f /= 10) * (*(*p)++ - '0'); }"
    )
    return f"""
extern {t} variable[{names}];
{t} sum(const char **p);
static void blank(const char **p) {{ while (**p == ' ' || **p == '\\t') (*p)++; }}
static {t} number(const char **p) {{
  {t} v = 0; while (**p >= '0' && **p <= '9') v = v * 10 + (*(*p)++ - '0');
  {fraction if t == "double" else ""} return v;
}}
static {t} factor(const char **p) {{
  blank(p);
  if (**p == '(') {{ (*p)++; {t} v = sum(p); blank(p); if (**p == ')') (*p)++; return v; }}
  if (**p == '-') {{ (*p)++; return -factor(p); }}
  if (**p >= 'a' && **p < 'a' + {names}) return variable[*(*p)++ - 'a'];
  return number(p);
}}
static {t} term(const char **p) {{
  {t} v = factor(p); int n = 0;
  for (;;) {{ blank(p); switch (**p) {{
    case '*': (*p)++; n++; v *= factor(p); break;
    case '/': (*p)++; n++; v /= factor(p); break;
    {extra.replace("n++;", "(*p)++; n++;")}
    default: return n > {_number(rng, 50, 99)} ? 0 : v; }} }}
}}
{t} sum(const char **p) {{
  {t} v = term(p);
  for (;;) {{ blank(p); if (**p == '+') {{ (*p)++; v += term(p); }} else if (**p == '-') {{ (*p)++; v -= term(p); }}
    else break; }}
  {relations}
  return v;
}}
{t} evaluate(const char *s) {{ return sum(&s); }}
"""


def machines(rng: np.random.Generator) -> str:
    """Interpreters of a byte code: one big switch in a loop."""
    t, depth = _pick(rng, "int", "long", "int16_t"), _number(rng, 16, 64)
    bodies = [
        "s[n++] = c[i++];", "n--; s[n - 1] += s[n];", "n--; s[n - 1] -= s[n];", "n--; s[n - 1] *= s[n];",
        "n--; if (s[n]) s[n - 1] /= s[n];", "s[n] = s[n - 1]; n++;", f"{{ {t} x = s[n - 1]; s[n - 1] = s[n - 2]; s[n - 2] = x; }}",
        "i = c[i];", "if (s[--n]) i = c[i]; else i++;", "s[n - 1] = s[n - 1] < 0;", "s[n - 1] = ~s[n - 1];",
        "s[n++] = m[c[i++] & 15];", "m[c[i++] & 15] = s[--n];", "n--; s[n - 1] &= s[n];", "n--; s[n - 1] ^= s[n];",
        "n--; s[n - 1] <<= s[n] & 7;", "put(s[--n]);", "s[n - 1]++;",
    ]  # fmt: skip
    chosen = rng.permutation(len(bodies))[: _number(rng, 8, len(bodies))]
    sparse = _number(rng, 1, 5)
    cases = "\n".join(f"    case {int(k) * sparse}: {bodies[int(b)]} break;" for k, b in enumerate(chosen))
    arms = " ".join(f"case {k * 3 + 1}: return {int(v)};" for k, v in enumerate(rng.integers(0, 900, 12)))
    table = " ".join(f"case {k}: return {k * _number(rng, 2, 4) + 7};" for k in range(9))
    return f"""extern void put(long);
{t} run(const uint8_t *c, {t} *m) {{
  {t} s[{depth}]; int n = 0, i = 0;
  for (;;) {{ if (n < 0 || n >= {depth}) return -1; switch (c[i++]) {{
{cases}
    default: return n ? s[n - 1] : 0; }} }}
}}
int cost(int op) {{ switch (op) {{ {arms} default: return -1; }} }}
int width(unsigned op) {{ switch (op) {{ {table} default: return 0; }} }}
"""


def lexers(rng: np.random.Generator) -> str:
    """State machines over characters."""
    words = [("if", 1), ("else", 2), ("while", 3), ("return", 4), ("for", 5), ("int", 6), ("char", 7), ("struct", 8)]
    chosen = [words[i] for i in rng.permutation(len(words))[: _number(rng, 3, 8)]]
    keys = " ".join(f'if (n == {len(w)} && !memcmp(s, "{w}", {len(w)})) return {k};' for w, k in chosen)
    marks = "".join(f" case '{c}':" for c in rng.permutation(list("+-*/%<>=!&|^"))[: _number(rng, 4, 12)])
    q = _pick(rng, "'\"'", "'`'")
    return f"""
static int keyword(const char *s, int n) {{ {keys} return 20; }}
int token(const char **p, int *length) {{
  const char *s = *p; int state = 0, kind = 0;
  while (*s == ' ' || *s == '\\n' || *s == '\\t') s++;
  const char *b = s;
  for (; *s; s++) {{ char c = *s; switch (state) {{
    case 0: if ((c >= 'a' && c <= 'z') || c == '_') state = 1; else if (c >= '0' && c <= '9') state = 2;
      else if (c == {q}) state = 3; else if (c == '#') state = 4; else {{ switch (c) {{ {marks} state = 5; break;
      default: s++; kind = 40; goto done; }} }} break;
    case 1: if (!((c >= 'a' && c <= 'z') || c == '_' || (c >= '0' && c <= '9'))) {{ kind = keyword(b, (int)(s - b));
      goto done; }} break;
    case 2: if (c == '.') state = 6; else if (c < '0' || c > '9') {{ kind = 21; goto done; }} break;
    case 3: if (c == '\\\\' && s[1]) s++; else if (c == {q}) {{ s++; kind = 22; goto done; }} break;
    case 4: if (c == '\\n') {{ kind = 23; goto done; }} break;
    case 5: if (c == '=') s++; kind = 24; goto done;
    case 6: if (c < '0' || c > '9') {{ kind = 25; goto done; }} break; }} }}
  kind = state ? {_number(rng, 26, 39)} : 0;
done: *length = (int)(s - b); *p = s; return kind;
}}
int count(const char *s) {{ int n = 0, k, l; while ((k = token(&s, &l))) n += k == {
        _number(rng, 20, 25)
    } ? l : 1; return n; }}
{
        _pick(
            rng,
            "",
            "int depth(const char *s) { int d = 0, m = 0; for (; *s; s++) { if (*s == '(' || *s == '[') d++; if "
            "(*s == ')' || *s == ']') d--; if (d > m) m = d; } return d ? -1 : m; }",
        )
    }
"""


def lists(rng: np.random.Generator) -> str:
    """Linked lists."""
    t, extra = _pick(rng, "int", "long", "double", "short"), _pick(rng, "", "char name[12];", "long stamp; int use;")
    return f"struct node {{ {t} value; {extra} struct node *next; }};\n" + _some(rng, [
        f"struct node *push(struct node *h, {t} v) {{ struct node *n = malloc(sizeof *n); if (!n) return h; memset(n, 0,"
        " sizeof *n); n->value = v; n->next = h; return n; }",
        "struct node *turn(struct node *h) { struct node *r = 0; while (h) { struct node *n = h->next; h->next = r; r ="
        " h; h = n; } return r; }",
        "struct node *merge(struct node *a, struct node *b) { struct node d, *t = &d; d.next = 0; while (a && b) { if"
        " (a->value <= b->value) { t->next = a; a = a->next; } else { t->next = b; b = b->next; } t = t->next; } t->next"
        " = a ? a : b; return d.next; }",
        f"struct node *drop(struct node *h, {t} v) {{ struct node **p = &h; while (*p) {{ if ((*p)->value == v) {{ struct"
        " node *d = *p; *p = d->next; free(d); } else p = &(*p)->next; } return h; }",
        "int size(const struct node *h) { int n = 0; for (; h; h = h->next) n++; return n; }",
        f"{t} sum(const struct node *h) {{ {t} s = 0; for (; h; h = h->next) s += h->value; return s; }}",
        "int loop(const struct node *h) { const struct node *f = h; while (f && f->next) { h = h->next; f ="
        " f->next->next; if (h == f) return 1; } return 0; }",
        "void insert(struct node **h, struct node *n) { while (*h && (*h)->value < n->value) h = &(*h)->next; n->next ="
        " *h; *h = n; }",
        "void clear(struct node *h) { while (h) { struct node *n = h->next; free(h); h = n; } }",
    ], 5)  # fmt: skip


def trees(rng: np.random.Generator) -> str:
    """Binary search trees."""
    t, payload = _pick(rng, "int", "long", "double"), _pick(rng, "", "int count;", "void *data;")
    return f"struct tree {{ {t} key; {payload} struct tree *left, *right; }};\n" + _some(rng, [
        f"struct tree *add(struct tree *r, {t} k) {{ if (!r) {{ r = calloc(1, sizeof *r); if (r) r->key = k; return r; }}"
        " if (k < r->key) r->left = add(r->left, k); else if (k > r->key) r->right = add(r->right, k); return r; }",
        f"struct tree *look(struct tree *r, {t} k) {{ while (r && r->key != k) r = k < r->key ? r->left : r->right; return"
        " r; }",
        "int height(const struct tree *r) { if (!r) return 0; int a = height(r->left), b = height(r->right); return 1 +"
        " (a > b ? a : b); }",
        f"int walk(const struct tree *r, {t} *o, int n) {{ if (!r) return n; n = walk(r->left, o, n); o[n++] = r->key;"
        " return walk(r->right, o, n); }",
        "struct tree *mirror(struct tree *r) { if (r) { struct tree *l = mirror(r->left); r->left = mirror(r->right);"
        " r->right = l; } return r; }",
        f"struct tree *erase(struct tree *r, {t} k) {{ if (!r) return 0; if (k < r->key) r->left = erase(r->left, k); else"
        " if (k > r->key) r->right = erase(r->right, k); else if (!r->left || !r->right) { struct tree *c = r->left ?"
        " r->left : r->right; free(r); return c; } else { struct tree *m = r->right; while (m->left) m = m->left; r->key"
        " = m->key; r->right = erase(r->right, m->key); } return r; }",
        f"int ordered(const struct tree *r, {t} a, {t} b) {{ return !r || (r->key > a && r->key < b && ordered(r->left, a,"
        " r->key) && ordered(r->right, r->key, b)); }",
        "struct tree *rotate(struct tree *r) { struct tree *p = r->left; r->left = p->right; p->right = r; return p; }",
        "void release(struct tree *r) { if (r) { release(r->left); release(r->right); free(r); } }",
    ], 5)  # fmt: skip


def tables(rng: np.random.Generator) -> str:
    """Hash tables with open addressing or with chains."""
    size, prime = int(2 ** rng.integers(5, 11)), _pick(rng, "31u", "131u", "16777619u", "2654435761u")
    value = _pick(rng, "int", "double", "long")
    mix = _pick(rng, "h ^= h >> 15;", "h = (h << 5) | (h >> 27);", "h += h << 3; h ^= h >> 11;")
    step = _pick(rng, "i = (i + 1) & (N - 1)", "i = (i + k++) & (N - 1)")
    return f"""#define N {size}
struct slot {{ char key[{_number(rng, 2, 6) * 4}]; {value} value; int used; }};
static unsigned hash(const char *s) {{ unsigned h = {_number(rng, 1, 9999)}; while (*s) {{ h = h * {prime} + (unsigned char)*s++; {mix} }} return h; }}
static struct slot *probe(struct slot *t, const char *key) {{ unsigned i = hash(key) & (N - 1), k = 1; while (t[i].used && strcmp(t[i].key, key)) {{ {step}; if (k++ > N) return 0; }} return &t[i]; }}
int put(struct slot *t, const char *key, {value} v) {{ struct slot *s = probe(t, key); if (!s) return 0; if (!s->used) {{ strncpy(s->key, key, sizeof s->key - 1); s->used = 1; }} s->value = v; return 1; }}
{value} get(struct slot *t, const char *key) {{ struct slot *s = probe(t, key); return s && s->used ? s->value : 0; }}
""" + _some(rng, [
        "void wipe(struct slot *t) { for (int i = 0; i < N; i++) { t[i].used = 0; t[i].value = 0; t[i].key[0] = 0; } }",
        "int filled(const struct slot *t) { int n = 0; for (int i = 0; i < N; i++) n += t[i].used != 0; return n; }",
        f"{value} all(const struct slot *t) {{ {value} s = 0; for (int i = 0; i < N; i++) if (t[i].used) s += t[i].value;"
        " return s; }",
        "int move(struct slot *to, struct slot *from) { int n = 0; for (int i = 0; i < N; i++) if (from[i].used) n +="
        " put(to, from[i].key, from[i].value); return n; }",
        "int bump(struct slot *t, const char **keys, int n) { int m = 0; for (int i = 0; i < n; i++) { struct slot *s ="
        " probe(t, keys[i]); if (s && s->used) { s->value += 1; m++; } } return m; }",
    ], 2)  # fmt: skip


def sorts(rng: np.random.Generator) -> str:
    """Sorting and searching in arrays."""
    t, cut = _pick(rng, "int", "double", "uint16_t", "long"), _number(rng, 4, 24)
    less = _pick(rng, "<", ">")
    swap = f"{t} s = a[i]; a[i] = a[j]; a[j] = s;"
    return _some(rng, [
        f"void bubble({t} *a, int n) {{ for (int k = n; k > 1; k--) for (int i = 0, j = 1; j < k; i++, j++) if (a[j] {less}"
        f" a[i]) {{ {swap} }} }}",
        f"void insertion({t} *a, int n) {{ for (int i = 1; i < n; i++) {{ {t} x = a[i]; int j = i; while (j > 0 && x {less}"
        " a[j - 1]) { a[j] = a[j - 1]; j--; } a[j] = x; } }",
        f"void quick({t} *a, int lo, int hi) {{ while (hi - lo > {cut}) {{ {t} p = a[(lo + hi) / 2]; int i = lo, j = hi;"
        f" while (i <= j) {{ while (a[i] {less} p) i++; while (p {less} a[j]) j--; if (i <= j) {{ {swap} i++; j--; }} }}"
        " quick(a, lo, j); lo = i; } }",
        f"static void sift({t} *a, int i, int n) {{ for (;;) {{ int j = 2 * i + 1; if (j >= n) return; if (j + 1 < n &&"
        f" a[j] {less} a[j + 1]) j++; if (!(a[i] {less} a[j])) return; {swap} i = j; }} }}\nvoid heap({t} *a, int n) {{ for"
        f" (int i = n / 2 - 1; i >= 0; i--) sift(a, i, n); for (int j = n - 1; j > 0; j--) {{ int i = 0; {swap} sift(a, 0,"
        " j); } }",
        f"int bisect(const {t} *a, int n, {t} x) {{ int lo = 0, hi = n; while (lo < hi) {{ int m = (lo + hi) / 2; if (a[m]"
        f" {less} x) lo = m + 1; else hi = m; }} return lo; }}",
        f"void merge(const {t} *a, int m, const {t} *b, int n, {t} *o) {{ int i = 0, j = 0; while (i < m || j < n) if (j =="
        f" n || (i < m && !(b[j] {less} a[i]))) *o++ = a[i++]; else *o++ = b[j++]; }}",
        f"void shell({t} *a, int n) {{ for (int g = n / 2; g; g /= 2) for (int i = g; i < n; i++) {{ {t} x = a[i]; int j ="
        f" i; for (; j >= g && x {less} a[j - g]; j -= g) a[j] = a[j - g]; a[j] = x; }} }}",
        f"int unique({t} *a, int n) {{ int m = 0; for (int i = 0; i < n; i++) if (!m || a[m - 1] != a[i]) a[m++] = a[i];"
        " return m; }",
    ], 4)  # fmt: skip


def bits(rng: np.random.Generator) -> str:
    """Bits counted, turned and packed."""
    t = _pick(rng, "uint32_t", "uint64_t")
    w, poly = (32, "0xEDB88320u") if t == "uint32_t" else (64, "0xC96C5795D7870F42ull")
    k = _number(rng, 3, 7)
    return _some(rng, [
        f"int ones({t} x) {{ int n = 0; while (x) {{ x &= x - 1; n++; }} return n; }}",
        f"{t} mirror({t} x) {{ {t} r = 0; for (int i = 0; i < {w}; i++) {{ r = r << 1 | (x & 1); x >>= 1; }} return r; }}",
        f"{t} crc(const uint8_t *p, int n) {{ {t} c = ~({t})0; while (n--) {{ c ^= *p++; for (int i = 0; i < 8; i++) c = c"
        f" & 1 ? c >> 1 ^ {poly} : c >> 1; }} return ~c; }}",
        f"{t} turn({t} x, int n) {{ return x << (n & {w - 1}) | x >> (-n & {w - 1}); }}",
        f"int top({t} x) {{ int n = -1; while (x) {{ x >>= 1; n++; }} return n; }}",
        f"void pack(uint8_t *o, const {t} *x, int n) {{ for (int i = 0; i < n * {k}; i++) o[i / 8] |= (x[i / {k}] >> (i %"
        f" {k}) & 1) << (i % 8); }}",
        f"{t} swapped({t} x) {{ {t} r = 0; for (int i = 0; i < {w // 8}; i++) r |= (x >> (8 * i) & 255) << ({w - 8} - 8 *"
        " i); return r; }",
        f"{t} gray({t} x) {{ x ^= x >> 1; for (int s = {w // 2}; s; s >>= 1) x ^= x >> s; return x; }}",
        f"{t} root({t} x) {{ {t} r = 0, b = ({t})1 << {w - 2}; while (b > x) b >>= 2; for (; b; b >>= 2) if (x >= r + b) {{"
        " x -= r + b; r = (r >> 1) + b; } else r >>= 1; return r; }",
        f"int parity(const {t} *a, int n) {{ {t} x = 0; for (int i = 0; i < n; i++) x ^= a[i]; for (int s = {w // 2}; s; s"
        " >>= 1) x ^= x >> s; return x & 1; }",
    ], 5)  # fmt: skip


def ciphers(rng: np.random.Generator) -> str:
    """Rounds of small ciphers, digests and generators."""
    rounds, a, b, c = _number(rng, 8, 32), *(int(x) for x in rng.integers(3, 29, 3))
    magic = int(rng.integers(2**31, 2**32))
    return _some(rng, [
        f"void tea(uint32_t *v, const uint32_t *k) {{ uint32_t x = v[0], y = v[1], s = 0; for (int i = 0; i < {rounds};"
        f" i++) {{ s += {magic}u; x += ((y << 4) + k[0]) ^ (y + s) ^ ((y >> 5) + k[1]); y += ((x << 4) + k[2]) ^ (x + s) ^"
        " ((x >> 5) + k[3]); } v[0] = x; v[1] = y; }",
        f"#define R(x, n) ((x) << (n) | (x) >> (32 - (n)))\nvoid quarter(uint32_t *s) {{ for (int i = 0; i < {rounds}; i++)"
        f" {{ s[0] += s[1]; s[3] = R(s[3] ^ s[0], {a}); s[2] += s[3]; s[1] = R(s[1] ^ s[2], {b}); s[0] += s[1]; s[3] ="
        f" R(s[3] ^ s[0], {c}); s[2] += s[3]; s[1] = R(s[1] ^ s[2], 7); }} }}",
        f"uint32_t digest(const uint8_t *p, size_t n) {{ uint32_t h = {magic}u; for (size_t i = 0; i < n; i++) {{ h ^= p[i];"
        f" h *= 0x01000193; h = h << {a} | h >> {32 - a}; }} return h ^ h >> {b}; }}",
        f"uint64_t next(uint64_t *s) {{ uint64_t x = *s; x ^= x << {a}; x ^= x >> {b}; x ^= x << {c}; *s = x; return x *"
        " 0x2545F4914F6CDD1Dull; }",
        "void schedule(uint8_t *s, const uint8_t *k, int n) { for (int i = 0; i < 256; i++) s[i] = i; for (int i = 0, j ="
        " 0; i < 256; i++) { j = (j + s[i] + k[i % n]) & 255; uint8_t t = s[i]; s[i] = s[j]; s[j] = t; } }",
        "void stream(uint8_t *s, uint8_t *d, int n) { uint8_t i = 0, j = 0; while (n--) { j += s[++i]; uint8_t t = s[i];"
        " s[i] = s[j]; s[j] = t; *d++ ^= s[(uint8_t)(s[i] + s[j])]; } }",
        "void adler(const uint8_t *p, int n, uint32_t *o) { uint32_t x = 1, y = 0; for (int i = 0; i < n; i++) { x = (x +"
        " p[i]) % 65521; y = (y + x) % 65521; } *o = y << 16 | x; }",
        f"uint64_t modular(uint64_t b, uint64_t e) {{ uint64_t r = 1, m = {magic | 1}u; for (b %= m; e; e >>= 1) {{ if (e &"
        " 1) r = r * b % m; b = b * b % m; } return r; }",
    ], 4)  # fmt: skip


def numerics(rng: np.random.Generator) -> str:
    """Floating point: roots, series, quadrature."""
    t, n = _pick(rng, "float", "double"), _number(rng, 4, 12)
    cs = ", ".join(f"{x:.3f}" for x in rng.normal(size=n))
    eps = _pick(rng, "1e-6", "1e-9", "1e-4")
    return _some(rng, [
        f"{t} horner({t} x) {{ static const {t} c[] = {{{cs}}}; {t} s = 0; for (int i = 0; i < {n}; i++) s = s * x + c[i];"
        " return s; }",
        f"{t} root({t} x) {{ {t} r = x > 1 ? x : 1; for (int i = 0; i < 60; i++) {{ {t} d = (r - x / r) / 2; r -= d; if (d <"
        f" {eps} && d > -{eps}) break; }} return r; }}",
        f"{t} simpson({t} (*f)({t}), {t} a, {t} b) {{ int n = {2 * n}; {t} h = (b - a) / n, s = f(a) + f(b); for (int i = 1;"
        " i < n; i++) s += (i & 1 ? 4 : 2) * f(a + i * h); return s * h / 3; }",
        f"{t} sine({t} x) {{ while (x > 3.14159265) x -= 6.2831853; while (x < -3.14159265) x += 6.2831853; {t} s = x, u = x;"
        f" for (int k = 1; k < {n}; k++) {{ u *= -x * x / (2 * k * (2 * k + 1)); s += u; }} return s; }}",
        f"void moments(const {t} *x, int n, {t} *o) {{ {t} m = 0, v = 0; for (int i = 0; i < n; i++) {{ {t} d = x[i] - m; m"
        " += d / (i + 1); v += d * (x[i] - m); } o[0] = m; o[1] = n > 1 ? v / (n - 1) : 0; }",
        f"void step({t} *y, {t} h) {{ {t} k1 = y[1], l1 = -y[0], k2 = y[1] + h / 2 * l1, l2 = -(y[0] + h / 2 * k1); {t} k3 ="
        " y[1] + h / 2 * l2, l3 = -(y[0] + h / 2 * k2), k4 = y[1] + h * l3, l4 = -(y[0] + h * k3); y[0] += h / 6 * (k1 +"
        " 2 * k2 + 2 * k3 + k4); y[1] += h / 6 * (l1 + 2 * l2 + 2 * l3 + l4); }",
        f"{t} bisect({t} (*f)({t}), {t} a, {t} b) {{ {t} u = f(a); while (b - a > {eps}) {{ {t} m = (a + b) / 2, v = f(m); if"
        " ((v < 0) == (u < 0)) { a = m; u = v; } else b = m; } return a; }",
        f"{t} clamp({t} x, {t} a, {t} b) {{ return x < a ? a : x > b ? b : x; }}",
        f"int quadratic({t} a, {t} b, {t} c, {t} *o) {{ {t} d = b * b - 4 * a * c; if (d < 0) return 0; {t} r = d; for (int i"
        f" = 0; i < {n}; i++) r = (r + d / r) / 2; o[0] = (-b - r) / (2 * a); o[1] = (-b + r) / (2 * a); return 2; }}",
    ], 5)  # fmt: skip


def geometry(rng: np.random.Generator) -> str:
    """Structures passed by value."""
    t, d = _pick(rng, "float", "double", "int"), _number(rng, 2, 4)
    axes = "xyzw"[:d]
    vec = f"struct v {{ {t} {', '.join(axes)}; }};\n"

    def each(text: str, join: str = ", ") -> str:
        return join.join(text.replace("@", a) for a in axes)

    return vec + _some(rng, [
        f"struct v add(struct v a, struct v b) {{ return (struct v){{{each('a.@ + b.@')}}}; }}",
        f"struct v times(struct v a, {t} k) {{ return (struct v){{{each('a.@ * k')}}}; }}",
        f"{t} dot(struct v a, struct v b) {{ return {each('a.@ * b.@', ' + ')}; }}",
        f"struct v mean(const struct v *p, int n) {{ struct v s = {{0}}; for (int i = 0; i < n; i++) {{ {each('s.@ += p[i].@;', ' ')}"
        f" }} {each('s.@ /= n;', ' ')} return s; }}",
        f"void box(const struct v *p, int n, struct v *lo, struct v *hi) {{ *lo = *hi = p[0]; for (int i = 1; i < n; i++) {{"
        f" {each('if (p[i].@ < lo->@) lo->@ = p[i].@; if (p[i].@ > hi->@) hi->@ = p[i].@;', ' ')} }} }}",
        f"int inside(struct v a, struct v lo, struct v hi) {{ return {each('a.@ >= lo.@ && a.@ <= hi.@', ' && ')}; }}",
        f"{t} area(const struct v *p, int n) {{ {t} s = 0; for (int i = 0, j = n - 1; i < n; j = i++) s += p[j].x * p[i].y -"
        " p[i].x * p[j].y; return s / 2; }",
        f"int nearest(const struct v *p, int n, struct v q) {{ int b = -1; {t} m = 0; for (int i = 0; i < n; i++) {{ {t} r ="
        f" {each('(p[i].@ - q.@) * (p[i].@ - q.@)', ' + ')}; if (b < 0 || r < m) {{ m = r; b = i; }} }} return b; }}",
        "struct v lerp(struct v a, struct v b, int k) { return (struct v){" + each(f"a.@ + (b.@ - a.@) * k / {_number(rng, 3, 99)}")
        + "}; }",
        "int cross(struct v a, struct v b, struct v c) { return (b.x - a.x) * (c.y - a.y) > (b.y - a.y) * (c.x - a.x); }",
    ], 5)  # fmt: skip


def graphs(rng: np.random.Generator) -> str:
    """Walks through graphs."""
    n, t = _number(rng, 16, 100), _pick(rng, "int", "long", "double")
    return f"#define N {n}\n" + _some(rng, [
        "int reach(const char g[N][N], int s, int *d) { int q[N], h = 0, t = 0; for (int i = 0; i < N; i++) d[i] = -1;"
        " d[s] = 0; q[t++] = s; while (h < t) { int u = q[h++]; for (int v = 0; v < N; v++) if (g[u][v] && d[v] < 0) {"
        " d[v] = d[u] + 1; q[t++] = v; } } return t; }",
        f"void all({t} d[N][N]) {{ for (int k = 0; k < N; k++) for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) if"
        " (d[i][k] + d[k][j] < d[i][j]) d[i][j] = d[i][k] + d[k][j]; }",
        f"void shortest({t} w[N][N], int s, {t} *d) {{ char done[N] = {{0}}; for (int i = 0; i < N; i++) d[i] = 1000000; d[s]"
        " = 0; for (int k = 0; k < N; k++) { int u = -1; for (int i = 0; i < N; i++) if (!done[i] && (u < 0 || d[i] <"
        " d[u])) u = i; done[u] = 1; for (int v = 0; v < N; v++) if (w[u][v] > 0 && d[u] + w[u][v] < d[v]) d[v] = d[u] +"
        " w[u][v]; } }",
        "int find(int *p, int x) { while (p[x] != x) { p[x] = p[p[x]]; x = p[x]; } return x; }\nint join(int *p, int a, int"
        " b) { a = find(p, a); b = find(p, b); if (a == b) return 0; p[a] = b; return 1; }",
        "static void deep(const char g[N][N], int u, char *seen, int *o, int *n) { seen[u] = 1; for (int v = 0; v < N; v++)"
        " if (g[u][v] && !seen[v]) deep(g, v, seen, o, n); o[(*n)++] = u; }\nint order(const char g[N][N], int *o) { char"
        " seen[N] = {0}; int n = 0; for (int u = 0; u < N; u++) if (!seen[u]) deep(g, u, seen, o, &n); return n; }",
        "int degree(const char g[N][N], int u) { int n = 0; for (int v = 0; v < N; v++) n += g[u][v] != 0; return n; }",
        "int colour(const char g[N][N], int *c) { int m = 0; for (int u = 0; u < N; u++) { char used[N] = {0}; for (int v ="
        " 0; v < u; v++) if (g[u][v]) used[c[v]] = 1; int k = 0; while (used[k]) k++; c[u] = k; if (k > m) m = k; } return"
        " m + 1; }",
    ], 3)  # fmt: skip


def programming(rng: np.random.Generator) -> str:
    """Dynamic programming."""
    n, t = _number(rng, 32, 128), _pick(rng, "int", "long", "short")
    a, b = _number(rng, 1, 4), _number(rng, 1, 4)
    low = _pick(rng, "x < y ? x : y", "y < x ? y : x")
    return f"static {t} least({t} x, {t} y) {{ return {low}; }}\n" + _some(rng, [
        f"{t} edit(const char *p, const char *q, int m, int n) {{ {t} d[{n} + 1]; for (int j = 0; j <= n; j++) d[j] = {b} *"
        f" j; for (int i = 1; i <= m; i++) {{ {t} c = d[0]; d[0] = {a} * i; for (int j = 1; j <= n; j++) {{ {t} e = d[j];"
        f" d[j] = least(least(d[j] + {a}, d[j - 1] + {b}), c + (p[i - 1] != q[j - 1])); c = e; }} }} return d[n]; }}",
        f"{t} sack(const {t} *w, const {t} *v, int n, int c) {{ static {t} b[{n * 4}]; memset(b, 0, sizeof b); for (int i ="
        " 0; i < n; i++) for (int k = c; k >= w[i]; k--) if (b[k - w[i]] + v[i] > b[k]) b[k] = b[k - w[i]] + v[i]; return"
        " b[c]; }",
        f"int common(const char *p, const char *q) {{ static {t} d[2][{n}]; int r = 0, m = strlen(p), n = strlen(q); for (int"
        " i = 1; i <= m; i++, r ^= 1) for (int j = 1; j <= n; j++) d[r][j] = p[i - 1] == q[j - 1] ? d[!r][j - 1] + 1 :"
        " d[!r][j] > d[r][j - 1] ? d[!r][j] : d[r][j - 1]; return d[!r][n]; }",
        f"{t} chain(const {t} *p, int n) {{ static {t} m[{n // 2}][{n // 2}]; for (int l = 2; l < n; l++) for (int i = 1; i +"
        f" l <= n; i++) {{ int j = i + l - 1; m[i][j] = 30000; for (int k = i; k < j; k++) m[i][j] = least(m[i][j], m[i][k]"
        " + m[k + 1][j] + p[i - 1] * p[k] * p[j]); } return m[1][n - 1]; }",
        f"{t} best(const {t} *a, int n) {{ {t} s = 0, m = a[0]; for (int i = 0; i < n; i++) {{ s = s > 0 ? s + a[i] : a[i]; if"
        " (s > m) m = s; } return m; }",
        f"int rising(const {t} *a, int n) {{ {t} e[{n}]; int m = 0; for (int i = 0; i < n; i++) {{ int lo = 0, hi = m; while"
        " (lo < hi) { int k = (lo + hi) / 2; if (e[k] < a[i]) lo = k + 1; else hi = k; } e[lo] = a[i]; if (lo == m) m++; }"
        " return m; }",
        f"{t} change(const {t} *c, int k, int x) {{ {t} d[{n} + 1]; d[0] = 0; for (int i = 1; i <= x && i <= {n}; i++) {{ d[i]"
        " = 9999; for (int j = 0; j < k; j++) if (c[j] <= i) d[i] = least(d[i], d[i - c[j]] + 1); } return d[x]; }",
    ], 3)  # fmt: skip


def formats(rng: np.random.Generator) -> str:
    """Numbers to text and back."""
    t, base = _pick(rng, "int", "long", "unsigned"), _pick(rng, "10", "16", "8")
    digits = _pick(rng, "0123456789abcdef", "0123456789ABCDEF")
    sep = _pick(rng, "','", "'.'", "'_'")
    return "extern int put(char);\n" + _some(rng, [
        f"int write({t} v, char *o) {{ char b[32]; int n = 0, k = 0; int minus = (long)v < 0; if (minus) v = -v; do {{ b[n++] ="
        f' "{digits}"[v % {base}]; v /= {base}; }} while (v); if (minus) o[k++] = \'-\'; while (n) o[k++] = b[--n]; o[k] = 0;'
        " return k; }",
        f"{t} read(const char *s, int *ok) {{ {t} v = 0; int minus = 0; *ok = 0; while (*s == ' ') s++; if (*s == '-' || *s =="
        f" '+') minus = *s++ == '-'; for (; *s; s++) {{ int d = *s >= '0' && *s <= '9' ? *s - '0' : *s >= 'a' && *s <= 'f' ? *s"
        f" - 'a' + 10 : 99; if (d >= {base}) return 0; v = v * {base} + d; *ok = 1; }} return minus ? -v : v; }}",
        f"void dump(const uint8_t *p, int n) {{ for (int i = 0; i < n; i++) {{ put(\"{digits}\"[p[i] >> 4]); put(\"{digits}\""
        "[p[i] & 15]); put((i & 15) == 15 ? '\\n' : ' '); } }",
        f"int group(const char *s, char *o) {{ int n = strlen(s), k = 0; for (int i = 0; i < n; i++) {{ o[k++] = s[i]; if ((n -"
        f" i) % 3 == 1 && i + 1 < n) o[k++] = {sep}; }} o[k] = 0; return k; }}",
        "int fixed(double v, int places, char *o) { int k = 0; if (v < 0) { o[k++] = '-'; v = -v; } long w = (long)v; double f ="
        " v - w; char b[24]; int n = 0; do { b[n++] = '0' + w % 10; w /= 10; } while (w); while (n) o[k++] = b[--n]; if"
        " (places) o[k++] = '.'; while (places--) { f *= 10; int d = (int)f; o[k++] = '0' + d; f -= d; } o[k] = 0; return k; }",
        "int roman(int v, char *o) { static const int n[] = {1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1}; static"
        ' const char *s[] = {"M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"}; int k = 0; for (int i ='
        " 0; i < 13; i++) while (v >= n[i]) { for (const char *p = s[i]; *p; p++) o[k++] = *p; v -= n[i]; } o[k] = 0; return"
        " k; }",
        "int encode(const uint8_t *p, int n, char *o) { static const char *a ="
        ' "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"; int k = 0; for (int i = 0; i < n; i += 3) {'
        " uint32_t v = p[i] << 16 | (i + 1 < n ? p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0); o[k++] = a[v >> 18]; o[k++]"
        " = a[v >> 12 & 63]; o[k++] = i + 1 < n ? a[v >> 6 & 63] : '='; o[k++] = i + 2 < n ? a[v & 63] : '='; } return k; }",
        "int runs(const char *s, char *o) { int k = 0; while (*s) { int n = 1; while (s[n] == *s && n < 9) n++; o[k++] = *s;"
        " if (n > 1) o[k++] = '0' + n; s += n; } o[k] = 0; return k; }",
    ], 4)  # fmt: skip


def callbacks(rng: np.random.Generator) -> str:
    """Calls through pointers: tables of handlers, maps and folds."""
    t, n = _pick(rng, "int", "long", "double"), _number(rng, 4, 10)
    bodies = [f"return a + {_number(rng, 1, 99)};", "return a * b;", "return a - b;", "return a > b ? a : b;", "return -a;",
              "return a * a + b;", "return b ? a / b : a;", "return a < 0 ? -a : a;", f"return b * {_number(rng, 2, 30)};",
              "return a + b + a * b;"]  # fmt: skip
    handlers = "\n".join(f"static {t} h{i}({t} a, {t} b) {{ {bodies[i]} }}" for i in range(n))
    return f"""typedef {t} (*handler)({t}, {t});
struct event {{ int kind; {t} a, b; handler done; }};
{handlers}
static const handler table[] = {{{", ".join(f"h{i}" for i in range(n))}}};
{t} call(int k, {t} a, {t} b) {{ return k >= 0 && k < {n} ? table[k](a, b) : 0; }}
""" + _some(rng, [
        f"{t} fold(handler f, const {t} *x, int n, {t} s) {{ for (int i = 0; i < n; i++) s = f(s, x[i]); return s; }}",
        f"void map(handler f, {t} *x, int n, {t} k) {{ for (int i = 0; i < n; i++) x[i] = f(x[i], k); }}",
        f"int keep(int (*p)({t}), {t} *x, int n) {{ int m = 0; for (int i = 0; i < n; i++) if (p(x[i])) x[m++] = x[i]; return"
        " m; }",
        f"{t} serve(struct event *e, int n) {{ {t} s = 0; for (int i = 0; i < n; i++) {{ {t} r = call(e[i].kind, e[i].a,"
        " e[i].b); if (e[i].done) r = e[i].done(r, s); s += r; } return s; }",
        "static int compare(const void *a, const void *b) { const struct event *p = a, *q = b; return p->kind != q->kind ?"
        " p->kind - q->kind : (p->a > q->a) - (p->a < q->a); }\nvoid arrange(struct event *e, int n) { qsort(e, n, sizeof *e,"
        " compare); }",
        f"{t} twice({t} a) {{ return h0(h1(a, {_number(rng, 2, 9)}), a) + h2(a, h3(a, 1)); }}",
        f"{t} pick(int k, {t} a) {{ handler f = k == 0 ? h0 : k == 1 ? h1 : k < {_number(rng, 3, 9)} ? h2 : h3; return f(a,"
        " f(a, a)); }",
    ], 3)  # fmt: skip


FAMILIES: tuple[Template, ...] = (
    reductions, stencils, matrices, recursion, strings, parsers, machines, lexers, lists, trees,
    tables, sorts, bits, ciphers, numerics, geometry, graphs, programming, formats, callbacks,
)  # fmt: skip


def programs(variants: int, seed: int) -> dict[str, str]:
    """C text by name ``family-number``: ``variants`` programs of each family."""
    return {
        f"{family.__name__}-{k}": HEAD + family(np.random.default_rng([seed, i, k]))
        for i, family in enumerate(FAMILIES)
        for k in range(variants)
    }
