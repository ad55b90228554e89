// LoRA and QLoRA in C, written from README.md (parts 1 to 5), for a little-endian machine:
//   cc -O2 -Wall -Wextra -std=c11 -o port port.c -lm && ./port kit results.json
// Numbers are float64; in NF4, each operation is rounded to float32. Memory is kept until the end.
// The kit's files are trusted: a line says what is missing or has a wrong size; no more is checked.
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { LAYERS = 3, D = 48, HEADS = 3, HD = 16, MLP = 128, VOCAB = 256, TMAX = 80, R = 8 };
enum { Q, K, V, O, GATE, UP, DOWN, PROJECTIONS, WEIGHTS = LAYERS * PROJECTIONS, ROOM = 1 << 20 };
static const double EPS = 1e-5, THETA = 10000, ALPHA = 16;
typedef struct { const char *path; char *text; unsigned char *data; size_t size; } File;
typedef struct { double *x; int count; } Tensor;
// One line, "port: what: why", and status 1
static void die(const char *what, const char *why) {
    fprintf(stderr, "port: %s: %s\n", what, why);
    exit(1);
}
// count zeros
static double *zeros(int count) { return calloc((size_t)count + 1, sizeof(double)); }
// The text abc, from a, b and c
static char *join(const char *a, const char *b, const char *c) {
    char *text = malloc(strlen(a) + strlen(b) + strlen(c) + 1);
    return strcat(strcat(strcpy(text, a), b), c);
}

// ---- Files: a text; or, with tensors, eight bytes n, little-endian, n bytes of JSON, the data
static File read_file(const char *path, int tensors) {
    FILE *f = fopen(path, "rb");
    unsigned long long n = ROOM;
    if (!f || (tensors && !fread(&n, 8, 1, f)) || n > ROOM) die(path, "cannot be read");
    File file = {path, calloc(n + 1, 1), malloc(ROOM), 0};
    if (fread(file.text, 1, n, f) < n && tensors) die(path, "ends in its header");
    file.size = fread(file.data, 1, ROOM, f);
    fclose(f);
    return file;
}
// The value of a key, which is what follows the first "key": of a JSON text; null if there is none
static const char *get(const char *json, const char *key) {
    char *quoted = join("\"", key, "\":");
    const char *p = strstr(json, quoted);
    return p ? p + strlen(quoted) + strspn(p + strlen(quoted), " ") : "null";
}
// A number: I32, F32, or F16: read as an F32 with its sign, exponent and fraction, times 2^112
static double decode(const unsigned char *p, char kind, int size) {
    unsigned bits = 0;
    float x;
    memcpy(&bits, p, (size_t)size);
    if (size == 2) bits = (bits & 0x8000) << 16 | (bits & 0x7fff) << 13;
    memcpy(&x, &bits, sizeof x);
    return kind == 'I' ? (int)bits : size == 2 ? ldexp(x, 112) : x;
}
// A tensor of count numbers (0: any); else *refused is set to 1, or, if it is NULL, it is the end
static Tensor find(const File *f, const char *name, int count, int *refused) {
    const char *entry = get(f->text, name), *dtype = get(entry, "dtype"), *wrong = NULL;
    int begin = 0, end = 0, size = strncmp(dtype, "\"F16\"", 5) ? 4 : 2;
    sscanf(get(entry, "data_offsets"), "[%d, %d]", &begin, &end);
    int has = (end - begin) / size, n = count ? count : has;
    Tensor t = {zeros(n), n};
    if (!has || has != n || (size_t)end > f->size) wrong = "is not there, or has another size";
    for (int i = 0; i < n && !wrong; i++) {
        t.x[i] = decode(f->data + begin + i * size, dtype[1], size);
        if (!isfinite(t.x[i])) wrong = "has NaN or an infinite number";
    }
    if (wrong && !refused) die(join(f->path, ": ", name), wrong);
    if (wrong) *refused = 1;
    return t;
}
// "name": [x₀, x₁, …], with { before the first result and a comma before the others
static void emit(const char *name, const double *x, int count) {
    printf("%s\"%s\": [%.9g", ftell(stdout) ? ",\n" : "{", name, x[0]);
    for (int i = 1; i < count; i++) printf(", %.9g", x[i]);
    printf("]");
}

// ---- 1. NF4
static float VALUE256[256], VALUE[16] = {-1, -0.6961928009986877, -0.5250730514526367,
    -0.39491748809814453, -0.28444138169288635, -0.18477343022833334, -0.09105003625154495, 0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1};
typedef struct { double *codes, *absmax_codes, *nested_absmax, *dequantized, offset; } NF4;
// edge n of 2^i, with c = 2^i + n: low + width·k if k < 0.5, else 1 - width·(1 - k), with k = n/2^i
static float edge(int c, int i) {
    double low = 0.1f, width = 1 - low, k = ldexp(c, -i) - 1;
    return (float)(k < 0.5 ? low + width * k : 1 - width * (1 - k));
}
// ±(edge + next)/2·10^(i - 6), sorted: at 127 ± c, as decade i has 2^i, and 2^i - 1 are before
static void make_values256(void) {
    for (int c = 1; c < 128; c++) {
        int i = ilogb(c);
        VALUE256[127 + c] = (edge(c, i) + edge(c + 1, i)) / 2 * (float)pow(10, i - 6);
        VALUE256[127 - c] = -VALUE256[127 + c];
    }
    VALUE256[255] = 1;
}
// The number of midpoints (value + next)/2 that are below x
static int nearest(const float *values, int last, float x) {
    int code = 0;
    while (code < last && (values[code] + values[code + 1]) / 2 < x) code++;
    return code;
}
// max |x - minus|
static float largest(const double *x, int count, float minus) {
    float m = 0;
    for (int i = 0; i < count; i++) m = fmaxf(m, fabsf((float)x[i] - minus));
    return m;
}
// code of w·(1/absmax); x = (absmax - offset)/nested in [-1, 1]; step = ⌊(x + 1)·0.5·65535 + 0.5⌋;
// code of step·2/65535 - 1; absmax′ = value256[this code]·nested + offset; value[code]·absmax′
static NF4 quantize(const double *w, int blocks) {
    double *top = zeros(blocks), sum = 0;                       // absmax
    for (int b = 0; b < blocks; b++) top[b] = largest(w + 64 * b, 64, 0);
    for (int b = 0; b < blocks; b++) sum += top[b];
    float offset = (float)(sum / blocks), nested = 0;
    NF4 q = {zeros(64 * blocks), zeros(blocks), zeros(blocks), zeros(64 * blocks), offset};
    for (int b = 0; b < blocks; b++) {
        float inverse = 1 / (top[b] == 0 ? 1e-38f : (float)top[b]);
        if (b % 256 == 0) nested = largest(top + b, blocks < b + 256 ? blocks - b : 256, offset);
        float x = fminf(fmaxf(((float)top[b] - offset) * (1 / nested), -1), 1);
        float step = floorf(((nested == 0 ? -1 : x) + 1) * 0.5f * 65535 + 0.5f);
        int code = nearest(VALUE256, 255, step * 2 / 65535 - 1);
        for (int i = 64 * b; i < 64 * b + 64; i++) {
            q.codes[i] = nearest(VALUE, 15, (float)w[i] * inverse);
            q.dequantized[i] = VALUE[(int)q.codes[i]] * (VALUE256[code] * nested + offset);
        }
        q.absmax_codes[b] = code;
        q.nested_absmax[b / 256] = nested;
    }
    return q;
}
// The results of part 1: a row of an input is one block
static void run_nf4(const File *inputs) {
    const char *names[] = {"nf4/normal", "nf4/ties", "nf4/special", "nf4/many"};
    for (int i = 0; i < 4; i++) {
        Tensor t = find(inputs, names[i], 0, NULL);
        NF4 q = quantize(t.x, t.count / 64);
        emit(join(names[i], "/codes", ""), q.codes, t.count);
        emit(join(names[i], "/offset", ""), &q.offset, 1);
        emit(join(names[i], "/nested_absmax", ""), q.nested_absmax, (t.count / 64 + 255) / 256);
        emit(join(names[i], "/absmax_codes", ""), q.absmax_codes, t.count / 64);
        emit(join(names[i], "/dequantized", ""), q.dequantized, t.count);
    }
}

// ---- Products. y (I, J) += c·a b, with a (I, n) and b (n, J); 'T': it is stored as its transpose
static void product(double c, const double *a, char ta, const double *b, char tb, double *y,
                    int I, int n, int J) {
    for (int i = 0; i < I * J; i++)
        for (int k = 0; k < n; k++)
            y[i] += c * a[ta == 'T' ? k * I + i / J : i / J * n + k]
                      * b[tb == 'T' ? i % J * n + k : k * J + i % J];
}
// y += c·x
static void add(double c, const double *x, double *y, int n) {
    for (int i = 0; i < n; i++) y[i] += c * x[i];
}
// Σ aᵢbᵢ
static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// ---- 2. The base
typedef struct { const char *path; int in, out, r; double s, *W, *A, *B; NF4 nf4; } Linear;
typedef struct { double *embedding, *norms[2 * LAYERS + 1]; Linear linear[WEIGHTS]; } Model;
typedef struct {            // of a layer, (T, …): x comes in, y[Q] to y[DOWN] leave the projections
    double x[TMAX * D], n[TMAX * D], p[HEADS][TMAX][TMAX], heads[TMAX * D], x2[TMAX * D];
    double n2[TMAX * D], hidden[TMAX * MLP], y[PROJECTIONS][TMAX * MLP];
} Kept;
static Kept kept[LAYERS + 1];                                   // the last one: behind the layers
static double logits[TMAX * VOCAB];
// h = W x + s·B A x, in rows: y = x Wᵀ + s·(x Aᵀ) Bᵀ; without LoRA r is 0
static void linear(const Linear *l, const double *x, double *y, int T) {
    double *xA = zeros(T * l->r);
    memset(y, 0, sizeof(double) * (size_t)(T * l->out));
    product(1, x, 'N', l->W, 'T', y, T, l->in, l->out);
    product(1, x, 'N', l->A, 'T', xA, T, l->in, l->r);
    product(l->s, xA, 'N', l->B, 'T', y, T, l->r, l->out);
}
// y = x/√(mean(x²) + ε)∘w, in rows
static void norm(const double *x, const double *w, double *y, int T) {
    for (int i = 0; i < T * D; i++)
        y[i] = x[i] / sqrt(dot(x + i / D * D, x + i / D * D, D) / D + EPS) * w[i % D];
}
// (a, b) → (a·cos - b·sin, b·cos + a·sin), angle = ±t·θ^(-2j/hd), for `heads` heads a row; -: back
static void rope(double *x, int T, int heads, int sign) {
    for (int i = 0; i < T * heads * HD / 2; i++) {
        int j = i % (HD / 2), head = i / (HD / 2);
        double angle = sign * (head / heads) * (double)(float)pow(THETA, -2.0 * j / HD);
        double *a = x + head * HD + j, *b = a + HD / 2, was = *a;
        *a = was * cos(angle) - *b * sin(angle);
        *b = *b * cos(angle) + was * sin(angle);
    }
}
// exp(x)/Σ exp(x), in place; the largest x is subtracted before
static void softmax(double *x, int count) {
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < count; i++) top = fmax(top, x[i]);
    for (int i = 0; i < count; i++) sum += exp(x[i] - top);
    for (int i = 0; i < count; i++) x[i] = exp(x[i] - top) / sum;
}
// o_proj(softmax(QKᵀ/√hd)V): for a head, p[t][u] = softmax(q[t]·k[u]/√hd), u ≤ t; Σ p[t][u]·v[u]
static void attention(const Linear *l, Kept *a, const double *n, int T) {
    for (int p = Q; p <= V; p++) linear(&l[p], n, a->y[p], T);
    for (int p = Q; p <= K; p++) rope(a->y[p], T, HEADS, 1);
    memset(a->heads, 0, sizeof a->heads);
    for (int at = 0; at < T * D; at += HD) {                    // head h at position t
        int t = at / D, h = at % D / HD;
        double *p = a->p[h][t], *k = a->y[K] + h * HD, *v = a->y[V] + h * HD;
        for (int u = 0; u <= t; u++) p[u] = dot(a->y[Q] + at, k + u * D, HD) / sqrt(HD);
        softmax(p, t + 1);
        for (int u = 0; u <= t; u++) add(p[u], v + u * D, a->heads + at, HD);
    }
    linear(&l[O], a->heads, a->y[O], T);
}
// down_proj(gate·σ(gate)∘up), with σ(x) = 1/(1 + exp(-x))
static void mlp(const Linear *l, Kept *a, const double *n, int T) {
    const double *gate = a->y[GATE], *up = a->y[UP];
    for (int p = GATE; p <= UP; p++) linear(&l[p], n, a->y[p], T);
    for (int i = 0; i < T * MLP; i++) a->hidden[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    linear(&l[DOWN], a->hidden, a->y[DOWN], T);
}
// x ← x + attention(norm(x)), x ← x + mlp(norm(x)) in each layer; norm(x) Eᵀ, of the last token
static double *forward(const Model *m, Tensor tokens) {
    int T = tokens.count;
    if (T > TMAX) die("tokens", "there are more than this program has room for");
    for (int i = 0; i < T * D; i++) kept[0].x[i] = m->embedding[(int)tokens.x[i / D] * D + i % D];
    for (int k = 0; k < LAYERS; k++) {
        Kept *a = &kept[k];
        norm(a->x, m->norms[2 * k], a->n, T);
        attention(m->linear + k * PROJECTIONS, a, a->n, T);
        for (int i = 0; i < T * D; i++) a->x2[i] = a->x[i] + a->y[O][i];
        norm(a->x2, m->norms[2 * k + 1], a->n2, T);
        mlp(m->linear + k * PROJECTIONS, a, a->n2, T);
        for (int i = 0; i < T * D; i++) kept[k + 1].x[i] = a->x2[i] + a->y[DOWN][i];
    }
    norm(kept[LAYERS].x, m->norms[2 * LAYERS], kept[LAYERS].n, T);
    memset(logits, 0, sizeof logits);
    product(1, kept[LAYERS].n, 'N', m->embedding, 'T', logits, T, D, VOCAB);
    return logits + (T - 1) * VOCAB;
}
// The weights: W has the shape (out, in)
static Model load_model(const char *kit) {
    const char *names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
    const char *layers[] = {"model.layers.0.", "model.layers.1.", "model.layers.2."};
    const char *norms[] = {"input_layernorm.weight", "post_attention_layernorm.weight"};
    File f = read_file(join(kit, "/model.safetensors", ""), 1);
    Model m = {.embedding = find(&f, "model.embed_tokens.weight", VOCAB * D, NULL).x};
    for (int i = 0; i < 2 * LAYERS; i++)
        m.norms[i] = find(&f, join(layers[i / 2], norms[i % 2], ""), D, NULL).x;
    m.norms[2 * LAYERS] = find(&f, "model.norm.weight", D, NULL).x;
    for (int k = 0; k < WEIGHTS; k++) {
        int p = k % PROJECTIONS, in = p == DOWN ? MLP : D, out = p == GATE || p == UP ? MLP : D;
        const char *path = join(layers[k / PROJECTIONS], names[p], "");
        m.linear[k] = (Linear){.path = path, .in = in, .out = out};
        m.linear[k].W = find(&f, join(path, ".weight", ""), out * in, NULL).x;
    }
    return m;
}
// The results of part 2; the input of RoPE has one head
static void run_base(const Model *m, const File *f) {
    double *x = find(f, "base/x", 9 * D, NULL).x, *heads = find(f, "base/rope", 7 * HD, NULL).x;
    rope(heads, 7, 1, 1);
    emit("base/rope", heads, 7 * HD);
    norm(x, m->norms[0], kept[0].n, 9);
    emit("base/norm", kept[0].n, 9 * D);
    attention(m->linear, &kept[0], x, 9);
    emit("base/attention", kept[0].y[O], 9 * D);
    mlp(m->linear, &kept[0], x, 9);
    emit("base/mlp", kept[0].y[DOWN], 9 * D);
    emit("base/logits0", forward(m, find(f, "base/prompt0", 0, NULL)), VOCAB);
    emit("base/logits1", forward(m, find(f, "base/prompt1", 0, NULL)), VOCAB);
    emit("base/logits2", forward(m, find(f, "base/prompt2", 0, NULL)), VOCAB);
}

// ---- 3. LoRA. Whether the layer is listed, and ^(expression)$ fits or the last part is listed
static int is_target(const char *config, const char *path, int layer) {
    const char *target = get(config, "target_modules"), *list = get(config, "layers_to_transform");
    const char *part = strstr(target, join("\"", strrchr(path, '.') + 1, "\""));
    if (*list == '[' && !memchr(list, '0' + layer, strcspn(list, "]"))) return 0;
    if (*target == '[') return part && part < strchr(target, ']');
    char *pattern = join("^(", target + 1, ""), *p = pattern;
    regex_t regex;
    strcpy(strchr(pattern, '"'), ")$");
    for (; (p = strstr(p, "\\\\")); p++) memmove(p, p + 1, strlen(p));      // two \ in JSON: one
    if (regcomp(&regex, pattern, REG_EXTENDED)) die(pattern, "is no expression");
    return !regexec(&regex, path, 0, NULL, 0);
}
// Whether all fields are known, or null, false or empty; a field is a line: a space, "key": value
static int known(const char *config) {
    const char *fields = "\"peft_type\"task_type\"base_model_name_or_path\"r\"lora_alpha\"bias\""
        "target_modules\"lora_dropout\"use_rslora\"use_dora\"rank_pattern\"layers_to_transform\"";
    for (const char *line = config; (line = strstr(line, "\n \"")); line++) {
        char key[64], value[3];
        sscanf(line, " \"%63[^\"]\": %2s", key, value);
        int empty = value[1] && strstr("nu fa [] {} \"\"", value);
        if (!empty && !strstr(fields, join("\"", key, "\""))) return 0;
    }
    return 1;
}
// W′ = W + s·BA; with m of DoRA, W′ = m∘(W + s·BA)/‖W + s·BA‖, row by row; then r is 0
static void merge(Linear *l, const double *m) {
    double *W = memcpy(zeros(l->out * l->in), l->W, sizeof(double) * (size_t)(l->out * l->in));
    product(l->s, l->B, 'N', l->A, 'N', W, l->out, l->r, l->in);
    for (int o = 0; o < l->out && m; o++) {
        double size = sqrt(dot(W + o * l->in, W + o * l->in, l->in));
        for (int i = 0; i < l->in; i++) W[o * l->in + i] *= m[o] / size;
    }
    l->W = W;
    l->r = 0;
}
// Puts an adapter on the model, s = α/r or α/√r. Gives whether it has to be refused
static int adapt(Model *m, const char *folder) {
    const char *config = read_file(join(folder, "/adapter_config.json", ""), 0).text;
    File f = read_file(join(folder, "/adapter_model.safetensors", ""), 1);
    int dora = *get(config, "use_dora") == 't', rslora = *get(config, "use_rslora") == 't';
    int refused = !known(config);
    for (int k = 0; k < WEIGHTS && !refused; k++) {
        Linear *l = &m->linear[k];
        const char *name = join("base_model.model.", l->path, ".lora_"), *end = l->path;
        if (!is_target(config, l->path, k / PROJECTIONS)) continue;
        while (*get(config, end) == 'n' && strchr(end, '.')) end = strchr(end, '.') + 1;
        l->r = atoi(get(config, *get(config, end) == 'n' ? "r" : end));     // end: in rank_pattern
        l->s = atof(get(config, "lora_alpha")) / (rslora ? sqrt(l->r) : l->r);
        l->A = find(&f, join(name, "A.weight", ""), l->r * l->in, &refused).x;
        l->B = find(&f, join(name, "B.weight", ""), l->out * l->r, &refused).x;
        if (dora) merge(l, find(&f, join(name, "magnitude_vector", ""), l->out, &refused).x);
    }
    return refused;
}
// The results of part 3: logits, or whether the adapter is refused
static void run_lora(const Model *base, Tensor prompt, const char *kit) {
    const char *names[] = {"square", "alpha", "rslora", "pattern", "rslora_pattern", "regex",
        "whole_path", "layer", "zero", "dora", "other_base", "unknown", "nan", "missing"};
    for (int i = 0; i < 14; i++) {
        Model m = *base;
        double refused = adapt(&m, join(kit, "/adapters/", names[i]));
        if (i < 10 && !refused) emit(join("lora/", names[i], ""), forward(&m, prompt), VOCAB);
        else emit(join("lora/", names[i], "/refused"), &refused, 1);
    }
}

// ---- 4. Training
enum { COUNT = LAYERS * R * (4 * (D + D) + 3 * (D + MLP)) };    // of all numbers in all factors
static double factors[COUNT], grad[COUNT], average[COUNT], squares[COUNT], moved[COUNT];
// ∂L/∂A += s·(gB)ᵀx; ∂L/∂B += s·gᵀ(xAᵀ); ∂L/∂x += gW + s·(gB)A
static void linear_back(const Linear *l, const double *x, const double *g, double *dx, int T) {
    double *xA = zeros(T * l->r), *gB = zeros(T * l->r);
    double *dA = grad + (l->A - factors), *dB = grad + (l->B - factors);
    product(1, x, 'N', l->A, 'T', xA, T, l->in, l->r);
    product(1, g, 'N', l->B, 'N', gB, T, l->out, l->r);
    product(l->s, gB, 'T', x, 'N', dA, l->r, T, l->in);
    product(l->s, g, 'T', xA, 'N', dB, l->out, T, l->r);
    product(1, g, 'N', l->W, 'N', dx, T, l->out, l->in);
    product(l->s, gB, 'N', l->A, 'N', dx, T, l->r, l->in);
}
// ∂L/∂x += (g∘w - x·mean(g∘w∘x)/z)/√z, with z = mean(x²) + ε
static void norm_back(const double *x, const double *w, const double *g, double *dx, int T) {
    for (int t = 0; t < T * D; t += D) {
        double z = dot(x + t, x + t, D) / D + EPS, mean = 0;
        for (int i = 0; i < D; i++) mean += g[t + i] * w[i] * x[t + i] / D;
        for (int i = 0; i < D; i++) dx[t + i] += (g[t + i] * w[i] - x[t + i] * mean / z) / sqrt(z);
    }
}
// g = ∂L/∂heads: ∂L/∂S = P∘(gVᵀ - g·heads)/√hd; ∂L/∂Q = ∂L/∂S·K; ∂L/∂K = (∂L/∂S)ᵀQ; ∂L/∂V = Pᵀg
static void attention_back(const Kept *a, Kept *d, int T) {
    for (int at = 0; at < T * D; at += HD) {                    // head h at position t
        int t = at / D, h = at % D / HD;
        const double *g = d->heads + at, *p = a->p[h][t];
        for (int from = h * HD; from <= at; from += D) {        // the same head at an earlier one
            double dp = dot(g, a->y[V] + from, HD) - dot(g, a->heads + at, HD), pu = p[from / D];
            add(pu * dp / sqrt(HD), a->y[K] + from, d->y[Q] + at, HD);
            add(pu * dp / sqrt(HD), a->y[Q] + at, d->y[K] + from, HD);
            add(pu, g, d->y[V] + from, HD);
        }
    }
    for (int p = Q; p <= K; p++) rope(d->y[p], T, HEADS, -1);
}
// From g = ∂L/∂(what leaves a layer) to g = ∂L/∂(what enters it); (gate·σ)′ = σ·(1 + gate·(1 - σ))
static void layer_back(const Linear *l, double *const *norms, const Kept *a, double *g, int T) {
    Kept *d = calloc(1, sizeof *d);                             // the gradients of a
    linear_back(&l[DOWN], a->hidden, g, d->hidden, T);
    for (int i = 0; i < T * MLP; i++) {
        double gate = a->y[GATE][i], s = 1 / (1 + exp(-gate));
        d->y[UP][i] = d->hidden[i] * gate * s;
        d->y[GATE][i] = d->hidden[i] * a->y[UP][i] * s * (1 + gate * (1 - s));
    }
    for (int p = GATE; p <= UP; p++) linear_back(&l[p], a->n2, d->y[p], d->n2, T);
    norm_back(a->x2, norms[1], d->n2, g, T);
    linear_back(&l[O], a->heads, g, d->heads, T);
    attention_back(a, d, T);
    for (int p = Q; p <= V; p++) linear_back(&l[p], a->n, d->y[p], d->n, T);
    norm_back(a->x, norms[0], d->n, g, T);
}
// Σ -log p(target)/targets of a row; ∂L/∂logits = (p - 1 at the target)/targets
static double row_back(const Model *m, Tensor row, int start, int targets) {
    double loss = 0, *n = zeros(row.count * D), *g = zeros(row.count * D);
    forward(m, row);
    for (int t = start - 1; t < row.count - 1; t++) {
        double *p = logits + t * VOCAB;
        int target = (int)row.x[t + 1];
        softmax(p, VOCAB);
        loss -= log(p[target]) / targets;
        p[target] -= 1;
        product(1.0 / targets, p, 'N', m->embedding, 'N', n + t * D, 1, VOCAB, D);
    }
    norm_back(kept[LAYERS].x, m->norms[2 * LAYERS], n, g, row.count);
    for (int k = LAYERS - 1; k >= 0; k--)
        layer_back(m->linear + k * PROJECTIONS, m->norms + 2 * k, &kept[k], g, row.count);
    return loss;
}
// All projections in NF4
static Model quantized(Model m) {
    for (int k = 0; k < WEIGHTS; k++) {
        m.linear[k].nf4 = quantize(m.linear[k].W, m.linear[k].in * m.linear[k].out / 64);
        m.linear[k].W = m.linear[k].nf4.dequantized;
    }
    return m;
}
// The factors of all projections, one after the other; s = α/r
static void add_factors(Model *m, const File *inputs) {
    for (int k = 0; k < WEIGHTS; k++) {
        Linear *l = &m->linear[k];
        l->A = k ? l[-1].B + R * l[-1].out : factors;
        l->B = l->A + R * l->in;
        add(1, find(inputs, join(l->path, ".lora_A", ""), R * l->in, NULL).x, l->A, R * l->in);
        add(1, find(inputs, join(l->path, ".lora_B", ""), R * l->out, NULL).x, l->B, R * l->out);
        l->r = R;
        l->s = ALPHA / R;
    }
}
// ∂L/∂(all factors) of two rows, whose targets begin at start; gives the loss, and the norm of it
static double batch_back(const Model *m, Tensor a, int start_a, Tensor b, int start_b, double *n) {
    int targets = a.count - start_a + b.count - start_b;
    memset(grad, 0, sizeof grad);
    double loss = row_back(m, a, start_a, targets) + row_back(m, b, start_b, targets);
    *n = sqrt(dot(grad, grad, COUNT));
    return loss;
}
// Step t of AdamW, x -= rate·(m/(1 - β₁ᵗ))/(√(v/(1 - β₂ᵗ)) + ε), m ← β₁m + (1 - β₁)g,
// v ← β₂v + (1 - β₂)g², for count numbers x
static void adamw(double *x, const double *g, double *m, double *v, int count, int t, double rate) {
    for (int i = 0; i < count; i++) {
        m[i] = 0.9 * m[i] + 0.1 * g[i];
        v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
        x[i] -= rate * m[i] / (1 - pow(0.9, t)) / (sqrt(v[i] / (1 - pow(0.999, t))) + 1e-8);
    }
}
// Twelve steps of AdamW on given gradients, from given numbers
static void run_adamw(const File *inputs) {
    Tensor x = find(inputs, "training/adamw/start", 0, NULL);
    Tensor g = find(inputs, "training/adamw/gradients", 12 * x.count, NULL);
    double *m = zeros(x.count), *v = zeros(x.count);
    for (int t = 1; t <= 12; t++) adamw(x.x, g.x + (t - 1) * x.count, m, v, x.count, t, 0.01);
    emit("training/adamw", x.x, x.count);
}
// The loss of rows of different lengths; three steps, with g ← g·c/(norm + 1e-6) if this is less
static void run_training(const Model *m, const File *inputs) {
    const char *steps[] = {"training/step1", "training/step2", "training/step3"};
    const double rates[] = {1e-3, 2e-3, 1.5e-3}, c[] = {1, 1, 100};
    Tensor row[] = {find(inputs, "training/row0", 0, NULL), find(inputs, "training/row1", 0, NULL)};
    int start = (int)*find(inputs, "training/start", 1, NULL).x;
    int start2 = (int)*find(inputs, "training/start2", 1, NULL).x;
    Tensor row2 = find(inputs, "training/row2", 0, NULL);
    double norm, *begin = memcpy(zeros(COUNT), factors, sizeof factors);
    double loss = batch_back(m, row[0], start, row2, start2, &norm);
    emit("training/uneven/loss", &loss, 1);
    emit("training/uneven/norm", &norm, 1);
    for (int t = 1; t <= 3; t++) {
        loss = batch_back(m, row[0], start, row[1], start, &norm);
        for (int k = 0; k < WEIGHTS && t == 1; k++) {
            const Linear *l = &m->linear[k];
            emit(join("training/grad/", l->path, ".lora_A"), grad + (l->A - factors), R * l->in);
            emit(join("training/grad/", l->path, ".lora_B"), grad + (l->B - factors), R * l->out);
        }
        if (t == 1) emit("training/loss", &loss, 1);
        if (t == 1) emit("training/norm", &norm, 1);
        for (int i = 0; i < COUNT; i++) grad[i] *= fmin(1, c[t - 1] / (norm + 1e-6));
        adamw(factors, grad, average, squares, COUNT, t, rates[t - 1]);
        for (int i = 0; i < COUNT; i++) moved[i] = factors[i] - begin[i];
        emit(join(steps[t - 1], "/A", ""), moved + (m->linear[PROJECTIONS + V].A - factors), R * D);
        emit(join(steps[t - 1], "/B", ""), moved + (m->linear[PROJECTIONS + V].B - factors), R * D);
    }
}

// ---- 5. Merging. Ŵ + s·BA of all projections; then all of them in NF4 again
static void run_merging(const Model *m, Tensor prompt) {
    Model merged = *m;
    for (int k = 0; k < WEIGHTS; k++) merge(&merged.linear[k], NULL);
    Model rounded = quantized(merged);
    double changed = 0;
    for (int k = 0; k < WEIGHTS; k++)
        for (int i = 0; i < m->linear[k].in * m->linear[k].out; i++)
            changed += m->linear[k].nf4.codes[i] != rounded.linear[k].nf4.codes[i];
    emit("merge/weight", merged.linear[PROJECTIONS + V].W, D * D);
    emit("merge/rounded", rounded.linear[PROJECTIONS + V].W, D * D);
    emit("merge/changed_codes", &changed, 1);
    emit("merge/logits", forward(&merged, prompt), VOCAB);
    emit("merge/rounded_logits", forward(&rounded, prompt), VOCAB);
}
// All parts, in one file {"name": [numbers], …}
int main(int count, char **arguments) {
    if (count != 3 || !freopen(arguments[2], "w", stdout)) die("usage", "./port KIT RESULTS.json");
    File inputs = read_file(join(arguments[1], "/inputs.safetensors", ""), 1);
    Model base = load_model(arguments[1]);
    Tensor prompt = find(&inputs, "base/prompt1", 0, NULL);
    make_values256();
    run_nf4(&inputs);
    run_base(&base, &inputs);
    run_lora(&base, prompt, arguments[1]);
    Model m = quantized(base);
    add_factors(&m, &inputs);
    run_merging(&m, prompt);
    run_adamw(&inputs);
    run_training(&m, &inputs);
    puts("}");
}
