// The policy `base-affinity` in C: keeps small orders on bases that are there, and makes a base only for a large order.
//
// It decides as plugins/base-affinity does, in Rust; tests/tests/components.rs asks both.

#include "placement_policy.h"
#include "settings.h"
#include <string.h>
#include <stdlib.h>

typedef placement_policy_string_t text_t;
typedef clonegate_policy_types_listed_base_t base_t;
typedef clonegate_policy_types_datastore_t datastore_t;
typedef clonegate_policy_types_inventory_t inventory_t;
typedef clonegate_policy_types_placement_request_t request_t;
typedef clonegate_policy_types_candidate_t candidate_t;

// Candidates that the host takes.
#define CANDIDATES 8
// New bases that are offered.
#define NEW_BASES 3

static settings_t settings = SETTINGS_DEFAULT;

// ---- texts --------------------------------------------------------------------------------------------------------

static text_t literal(const char *text) {
    return (text_t){ (uint8_t *)text, strlen(text) };
}

static int compare(text_t a, text_t b) {
    size_t shorter = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.ptr, b.ptr, shorter);
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

static bool same(text_t a, text_t b) {
    return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

// A text that is put together from parts; long enough for all that is said here.
typedef struct {
    char bytes[160];
    size_t length;
} line_t;

static void say(line_t *line, const char *part) {
    size_t length = strlen(part);
    if (length > sizeof line->bytes - line->length) length = sizeof line->bytes - line->length;
    memcpy(line->bytes + line->length, part, length);
    line->length += length;
}

static void say_number(line_t *line, uint32_t number) {
    char digits[11];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    say(line, digits + at);
}

static text_t said(const line_t *line) {
    text_t text;
    placement_policy_string_dup_n(&text, line->bytes, line->length);
    return text;
}

// ---- what there is ------------------------------------------------------------------------------------------------

static uint32_t room(const base_t *base) {
    return base->delta_limit > base->deltas ? base->delta_limit - base->deltas : 0;
}

static bool full(const base_t *base) {
    return (uint64_t)base->deltas * 100 >= (uint64_t)base->delta_limit * settings.full_percent;
}

static uint64_t headroom(const datastore_t *datastore) {
    return datastore->free > datastore->reserved ? datastore->free - datastore->reserved : 0;
}

static bool takes(const datastore_t *datastore, const request_t *ask) {
    return datastore->health.tag == CLONEGATE_POLICY_TYPES_HEALTH_ONLINE && headroom(datastore) >= ask->expected_delta;
}

// Whether the host could not use this target before. The two kinds of target lie at the same place.
static bool rejected(const request_t *ask, uint8_t kind, text_t id) {
    for (size_t i = 0; i < ask->rejected.len; i++) {
        const clonegate_policy_types_target_t *target = &ask->rejected.ptr[i].target;
        if (target->tag == kind && same(target->val.base, id)) return true;
    }
    return false;
}

// A text of the inventory by its number: from where the one before ends to where it ends.
static text_t text(const inventory_t *all, uint32_t number) {
    if (number >= all->text_ends.len) return (text_t){ NULL, 0 };
    uint32_t start = number == 0 ? 0 : all->text_ends.ptr[number - 1];
    return (text_t){ all->texts.ptr + start, all->text_ends.ptr[number] - start };
}

// Where a base is. Mostly it has the number of its datastore's name, but the same text may have several.
static const datastore_t *datastore_of(const base_t *base, const inventory_t *all) {
    for (size_t i = 0; i < all->datastores.len; i++) {
        if (all->datastores.ptr[i].id == base->datastore) return &all->datastores.ptr[i];
    }
    text_t id = text(all, base->datastore);
    for (size_t i = 0; i < all->datastores.len; i++) {
        if (same(text(all, all->datastores.ptr[i].id), id)) return &all->datastores.ptr[i];
    }
    return NULL;
}

static bool ready(const base_t *base, const request_t *ask, const inventory_t *all) {
    if (base->state.tag != CLONEGATE_POLICY_TYPES_BASE_STATE_READY || room(base) == 0 || !same(text(all, base->image), ask->image)) {
        return false;
    }
    const datastore_t *datastore = datastore_of(base, all);
    return datastore != NULL && takes(datastore, ask) && !rejected(ask, CLONEGATE_POLICY_TYPES_TARGET_BASE, text(all, base->id));
}

// Those that take the whole order first, of these the fullest: it stays warm, and others stay empty.
static bool base_before(const base_t *a, const base_t *b, const request_t *ask, const inventory_t *all) {
    bool a_part = room(a) < ask->count, b_part = room(b) < ask->count;
    if (a_part != b_part) return b_part;
    if (a->deltas != b->deltas) return a->deltas > b->deltas;
    return compare(text(all, a->id), text(all, b->id)) < 0;
}

static bool datastore_before(const datastore_t *a, const datastore_t *b, const inventory_t *all) {
    if (headroom(a) != headroom(b)) return headroom(a) > headroom(b);
    return compare(text(all, a->id), text(all, b->id)) < 0;
}

// ---- the policy ---------------------------------------------------------------------------------------------------

static void add(clonegate_policy_types_list_candidate_t *list, uint8_t kind, text_t id, text_t reason) {
    if (list->len == CANDIDATES) return;
    candidate_t *candidate = &list->ptr[list->len++];
    candidate->target.tag = kind;
    candidate->target.val.base = id;
    candidate->reason = reason;
}

bool exports_clonegate_policy_placement_place(clonegate_policy_types_context_t *context, request_t *ask, inventory_t *all,
                                              clonegate_policy_types_placement_verdict_t *verdict,
                                              clonegate_policy_types_failure_t *failure) {
    (void)context;
    (void)failure;
    const base_t *bases[CANDIDATES];
    size_t kept = 0;
    uint32_t found = 0;
    bool all_full = true;
    for (size_t i = 0; i < all->bases.len; i++) {
        const base_t *base = &all->bases.ptr[i];
        if (!ready(base, ask, all)) continue;
        found++;
        all_full = all_full && full(base);
        // The best few in order; more are never wanted.
        size_t at = kept;
        while (at > 0 && base_before(base, bases[at - 1], ask, all)) at--;
        if (at == CANDIDATES) continue;
        if (kept < CANDIDATES) kept++;
        for (size_t later = kept - 1; later > at; later--) bases[later] = bases[later - 1];
        bases[at] = base;
    }

    clonegate_policy_types_list_candidate_t list = { malloc(CANDIDATES * sizeof(candidate_t)), 0 };
    if (list.ptr == NULL) abort();
    if (!all_full && ask->count < settings.new_base_from) {
        for (size_t i = 0; i < kept; i++) {
            line_t line = { .length = 0 };
            say_number(&line, room(bases[i]));
            say(&line, " slots free, ");
            say_number(&line, ask->count);
            say(&line, " wanted");
            add(&list, CLONEGATE_POLICY_TYPES_TARGET_BASE, text(all, bases[i]->id), said(&line));
        }
    } else {
        const datastore_t *stores[NEW_BASES];
        size_t roomy = 0;
        for (size_t i = 0; i < all->datastores.len; i++) {
            const datastore_t *datastore = &all->datastores.ptr[i];
            if (!takes(datastore, ask) || rejected(ask, CLONEGATE_POLICY_TYPES_TARGET_NEW_BASE_ON, text(all, datastore->id))) continue;
            size_t at = roomy;
            while (at > 0 && datastore_before(datastore, stores[at - 1], all)) at--;
            if (at == NEW_BASES) continue;
            if (roomy < NEW_BASES) roomy++;
            for (size_t later = roomy - 1; later > at; later--) stores[later] = stores[later - 1];
            stores[at] = datastore;
        }
        line_t line = { .length = 0 };
        say_number(&line, found);
        say(&line, all_full ? " bases, all full: true, order of " : " bases, all full: false, order of ");
        say_number(&line, ask->count);
        text_t message = said(&line);
        clonegate_policy_log_write(CLONEGATE_POLICY_LOG_LEVEL_INFO, &message);

        size_t i = 0;
        for (; i < kept && room(bases[i]) >= ask->count; i++) {
            add(&list, CLONEGATE_POLICY_TYPES_TARGET_BASE, text(all, bases[i]->id), literal("takes the whole order"));
        }
        for (size_t n = 0; n < roomy; n++) {
            line_t reason = { .length = 0 };
            say(&reason, "a base for ");
            say_number(&reason, ask->count);
            say(&reason, " clones");
            add(&list, CLONEGATE_POLICY_TYPES_TARGET_NEW_BASE_ON, text(all, stores[n]->id), said(&reason));
        }
        for (; i < kept; i++) {
            add(&list, CLONEGATE_POLICY_TYPES_TARGET_BASE, text(all, bases[i]->id), literal("takes part of the order"));
        }
    }
    verdict->tag = list.len == 0 ? CLONEGATE_POLICY_TYPES_PLACEMENT_VERDICT_NO_OPINION
                                 : CLONEGATE_POLICY_TYPES_PLACEMENT_VERDICT_CHOOSE;
    verdict->val.choose = list;
    return true;
}

// ---- what every plugin says of itself -----------------------------------------------------------------------------

void exports_clonegate_policy_plugin_describe(exports_clonegate_policy_plugin_info_t *info) {
    info->name = literal("base-affinity-c");
    info->version = literal("0.1.0");
    info->description = literal("Keeps small orders on bases that are there, and makes a base only for a large order; written in C.");
    info->settings_schema.is_some = true;
    info->settings_schema.val = literal(SETTINGS_SCHEMA);
}

bool exports_clonegate_policy_plugin_configure(text_t *json, exports_clonegate_policy_plugin_list_problem_t *problems) {
    problem_t found[PROBLEMS];
    size_t wrong = settings_read((const char *)json->ptr, json->len, &settings, found);
    if (wrong == 0) return true;
    problems->len = wrong;
    problems->ptr = malloc(wrong * sizeof *problems->ptr);
    if (problems->ptr == NULL) abort();
    for (size_t i = 0; i < wrong; i++) {
        placement_policy_string_dup_n(&problems->ptr[i].path, found[i].path, found[i].path_length);
        problems->ptr[i].message = literal(found[i].message);
    }
    return false;
}
