// Reads the settings: as much of JSON as an object of whole numbers needs, and enough of the rest to name what is wrong.

#include "settings.h"
#include <stdbool.h>
#include <string.h>

// Deepest nesting of a value that is only stepped over.
#define DEPTH 32

typedef struct {
    const char *at, *end;
    problem_t *found;
    size_t wrong;
} reader_t;

static void problem(reader_t *r, const char *key, size_t key_length, const char *message) {
    if (r->wrong == PROBLEMS) return;
    problem_t *p = &r->found[r->wrong++];
    p->path[0] = '$';
    p->path_length = 1;
    p->message = message;
    if (key == NULL) return;
    if (key_length > sizeof p->path - 2) key_length = sizeof p->path - 2;
    // A text that is cut must not end within a character.
    while (key_length > 0 && key_length == sizeof p->path - 2 && ((unsigned char)key[key_length] & 0xc0) == 0x80) key_length--;
    p->path[1] = '.';
    memcpy(p->path + 2, key, key_length);
    p->path_length = key_length + 2;
}

static void space(reader_t *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static bool takes(reader_t *r, char wanted) {
    space(r);
    if (r->at == r->end || *r->at != wanted) return false;
    r->at++;
    return true;
}

// Steps over a text and gives what is between its quotes.
static bool text(reader_t *r, const char **start, size_t *length) {
    if (!takes(r, '"')) return false;
    *start = r->at;
    while (r->at < r->end && *r->at != '"') {
        if (*r->at == '\\') r->at++;
        if (r->at < r->end) r->at++;
    }
    *length = (size_t)(r->at - *start);
    return takes(r, '"');
}

static bool value(reader_t *r, int depth);

static bool list(reader_t *r, char close, bool keys, int depth) {
    const char *key;
    size_t length;
    r->at++;
    if (takes(r, close)) return true;
    do {
        if (keys && !(text(r, &key, &length) && takes(r, ':'))) return false;
        if (!value(r, depth + 1)) return false;
    } while (takes(r, ','));
    return takes(r, close);
}

// Steps over any value.
static bool value(reader_t *r, int depth) {
    const char *start;
    size_t length;
    space(r);
    if (r->at == r->end || depth == DEPTH) return false;
    switch (*r->at) {
    case '"': return text(r, &start, &length);
    case '{': return list(r, '}', true, depth);
    case '[': return list(r, ']', false, depth);
    default:
        start = r->at;
        while (r->at < r->end && *r->at > ' ' && *r->at != ',' && *r->at != '}' && *r->at != ']') r->at++;
        return r->at > start;
    }
}

// A whole number from 0 to 999,999,999, and nothing else, between two places.
static bool number(const char *from, const char *to, uint32_t *read) {
    if (from == to || to - from > 9) return false;
    *read = 0;
    for (; from < to; from++) {
        if (*from < '0' || *from > '9') return false;
        *read = *read * 10 + (uint32_t)(*from - '0');
    }
    return true;
}

static bool is(const char *key, size_t length, const char *wanted) {
    return length == strlen(wanted) && memcmp(key, wanted, length) == 0;
}

static void setting(reader_t *r, settings_t *s, const char *key, size_t length, const char *from, const char *to) {
    bool first = is(key, length, "new_base_from");
    if (!first && !is(key, length, "full_percent")) {
        problem(r, key, length, "there is no such setting; known: new_base_from, full_percent");
        return;
    }
    uint32_t read, most = first ? 10000 : 100;
    if (!number(from, to, &read)) {
        problem(r, key, length, "expected a whole number");
    } else if (read < 1 || read > most) {
        problem(r, key, length, first ? "must be from 1 to 10000" : "must be from 1 to 100");
    } else {
        *(first ? &s->new_base_from : &s->full_percent) = read;
    }
}

static bool object(reader_t *r, settings_t *s) {
    const char *key;
    size_t length;
    if (takes(r, '}')) return true;
    do {
        if (!text(r, &key, &length) || !takes(r, ':')) return false;
        space(r);
        const char *from = r->at;
        if (!value(r, 0)) return false;
        setting(r, s, key, length, from, r->at);
    } while (takes(r, ','));
    return takes(r, '}');
}

size_t settings_read(const char *json, size_t length, settings_t *settings, problem_t found[PROBLEMS]) {
    reader_t r = { .at = json, .end = json + length, .found = found, .wrong = 0 };
    *settings = (settings_t)SETTINGS_DEFAULT;
    space(&r);
    if (r.at == r.end) return 0;
    if (r.end - r.at >= 4 && memcmp(r.at, "null", 4) == 0) {
        r.at += 4;
    } else if (!takes(&r, '{')) {
        problem(&r, NULL, 0, "expected an object");
        return r.wrong;
    } else if (!object(&r, settings)) {
        r.wrong = 0;
        problem(&r, NULL, 0, "is not JSON");
        return r.wrong;
    }
    space(&r);
    if (r.at != r.end) problem(&r, NULL, 0, "is not JSON");
    return r.wrong;
}
