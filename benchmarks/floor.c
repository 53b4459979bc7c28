/* A naive floor for ingest: what plain C takes for the bytes of workload W on this machine.
 *
 *     cc -O2 -o floor floor.c && ./floor FILE SOURCES
 *
 * Reads messages (source, length, payload; little endian), decodes the msgpack, hashes each block
 * (a chain of four wide multiplications) and puts it into two open-addressing tables: one per
 * source, engine hash -> key, and one for all, key -> who holds it, a bit each.
 * Every table is allocated, sized for W and touched before the clock starts.
 *
 * It knows no copies, orphans, removals, adapters, salts, groups, media, growth, readers or bad
 * input, and stops at the first thing that it does not expect. Prints one JSON object.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK_TOKENS = 16, SOURCE_BITS = 15, KEY_BITS = 20, MOST_BLOCKS = 8192 };

typedef struct { uint64_t hash, key; } Held;
typedef struct { uint64_t key, holders[2]; } Block;
typedef struct { const uint8_t *at, *end; } Bytes;

static Held *held; /* SOURCES tables of 1 << SOURCE_BITS */
static Block *blocks;
static uint64_t distinct, placements, seen_tokens;

static void fail(const char *why) {
    fprintf(stderr, "floor: %s\n", why);
    exit(1);
}

static uint64_t big_endian(Bytes *in, int size) {
    if (in->end - in->at < size) fail("the payload ends early");
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value = value << 8 | in->at[i];
    in->at += size;
    return value;
}

static uint64_t read_uint(Bytes *in) {
    uint8_t tag = (uint8_t)big_endian(in, 1);
    if (tag < 0x80) return tag;
    if (tag >= 0xcc && tag <= 0xcf) return big_endian(in, 1 << (tag - 0xcc));
    fail("not an unsigned integer");
    return 0;
}

static uint32_t read_length(Bytes *in, uint8_t fixed, uint8_t wide) {
    uint8_t tag = (uint8_t)big_endian(in, 1);
    if ((tag & 0xf0) == fixed) return tag & 0x0f;
    if (tag == wide) return (uint32_t)big_endian(in, 2);
    if (tag == wide + 1) return (uint32_t)big_endian(in, 4);
    fail("not the array or map that was expected");
    return 0;
}

static uint32_t read_text(Bytes *in, const char **text) {
    uint8_t tag = (uint8_t)big_endian(in, 1);
    uint32_t length = 0;
    if ((tag & 0xe0) == 0xa0) length = tag & 0x1f;
    else if (tag == 0xd9) length = (uint32_t)big_endian(in, 1);
    else fail("not a text");
    *text = (const char *)in->at;
    in->at += length;
    return length;
}

static void skip(Bytes *in) {
    uint8_t tag = *in->at;
    const char *text;
    if (tag < 0x80 || (tag >= 0xcc && tag <= 0xcf)) read_uint(in);
    else if (tag == 0xc0) in->at++;
    else if (tag == 0xcb) in->at += 9;
    else if ((tag & 0xf0) == 0x90 || tag == 0xdc || tag == 0xdd)
        for (uint32_t n = read_length(in, 0x90, 0xdc); n > 0; n--) skip(in);
    else read_text(in, &text);
}

static uint64_t mix(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t block_key(uint64_t parent, const uint32_t *tokens) {
    uint64_t key = parent;
    for (int i = 0; i < BLOCK_TOKENS; i += 4) {
        uint64_t low, high;
        memcpy(&low, tokens + i, 8);
        memcpy(&high, tokens + i + 2, 8);
        key = mix(key ^ low ^ 0xa0761d6478bd642full, high ^ 0xe7037ed1a0b428dbull);
    }
    return key | 1; /* 0 is an empty slot */
}

static Held *find_held(uint32_t source, uint64_t hash) {
    Held *table = held + ((size_t)source << SOURCE_BITS);
    uint64_t slot = hash >> (64 - SOURCE_BITS);
    while (table[slot].key != 0 && table[slot].hash != hash)
        slot = (slot + 1) & ((1u << SOURCE_BITS) - 1);
    return table + slot;
}

static void put(uint32_t source, uint64_t hash, uint64_t key) {
    Held *mine = find_held(source, hash);
    mine->hash = hash;
    mine->key = key;
    uint64_t slot = key >> (64 - KEY_BITS);
    while (blocks[slot].key != 0 && blocks[slot].key != key)
        slot = (slot + 1) & ((1u << KEY_BITS) - 1);
    distinct += blocks[slot].key == 0;
    blocks[slot].key = key;
    blocks[slot].holders[source >> 6] |= 1ull << (source & 63);
    placements++;
}

static void apply_event(uint32_t source, Bytes *in, int decode_only) {
    static uint64_t hashes[MOST_BLOCKS];
    static uint32_t tokens[MOST_BLOCKS * BLOCK_TOKENS];
    uint32_t hash_count = 0, token_count = 0;
    uint64_t key = 0x9e3779b97f4a7c15ull;
    for (uint32_t fields = read_length(in, 0x80, 0xde); fields > 0; fields--) {
        const char *name;
        uint32_t length = read_text(in, &name);
        if (length == 12 && memcmp(name, "block_hashes", 12) == 0) {
            hash_count = read_length(in, 0x90, 0xdc);
            if (hash_count > MOST_BLOCKS) fail("too many blocks");
            for (uint32_t i = 0; i < hash_count; i++) hashes[i] = read_uint(in);
        } else if (length == 9 && memcmp(name, "token_ids", 9) == 0) {
            token_count = read_length(in, 0x90, 0xdc);
            if (token_count > MOST_BLOCKS * BLOCK_TOKENS) fail("too many tokens");
            for (uint32_t i = 0; i < token_count; i++) tokens[i] = (uint32_t)read_uint(in);
        } else if (length == 17 && memcmp(name, "parent_block_hash", 17) == 0 && *in->at != 0xc0) {
            uint64_t parent = read_uint(in);
            if (!decode_only) key = find_held(source, parent)->key;
        } else skip(in);
    }
    if (token_count != hash_count * BLOCK_TOKENS) fail("tokens and hashes disagree");
    seen_tokens += token_count;
    if (decode_only) return;
    for (uint32_t i = 0; i < hash_count; i++) {
        key = block_key(key, tokens + (size_t)i * BLOCK_TOKENS);
        put(source, hashes[i], key);
    }
}

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double apply_all(const uint8_t *data, size_t size, int decode_only) {
    double start = cpu_seconds();
    for (size_t at = 0; at < size;) {
        uint32_t head[2];
        memcpy(head, data + at, sizeof head);
        Bytes in = {data + at + sizeof head, data + at + sizeof head + head[1]};
        read_length(&in, 0x90, 0xdc);
        skip(&in);
        for (uint32_t n = read_length(&in, 0x90, 0xdc); n > 0; n--)
            apply_event(head[0], &in, decode_only);
        at += sizeof head + head[1];
    }
    return cpu_seconds() - start;
}

int main(int count, char **words) {
    if (count != 3) fail("usage: floor FILE SOURCES");
    size_t sources = (size_t)atoi(words[2]);
    if (sources < 1 || sources > 128) fail("1 to 128 sources");
    FILE *file = fopen(words[1], "rb");
    if (file == NULL) fail("cannot open the file");
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(size);
    size_t held_bytes = (sources << SOURCE_BITS) * sizeof(Held);
    size_t block_bytes = sizeof(Block) << KEY_BITS;
    held = malloc(held_bytes);
    blocks = malloc(block_bytes);
    if (data == NULL || held == NULL || blocks == NULL) fail("no memory");
    memset(held, 0, held_bytes);
    memset(blocks, 0, block_bytes);
    if (fread(data, 1, size, file) != size) fail("cannot read the file");
    double decode = apply_all(data, size, 1);
    double all = apply_all(data, size, 0);
    printf("{\"cpu_ns\": %.2f, \"decode_ns\": %.2f, \"placements\": %llu, \"distinct\": %llu}\n",
           all / (double)placements * 1e9, decode / (double)placements * 1e9,
           (unsigned long long)placements, (unsigned long long)distinct);
    return seen_tokens == 2 * placements * BLOCK_TOKENS ? 0 : 1;
}
