// The settings of the policy, and how they are read from JSON.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
    // Clones that an order must have before a new base is made for it.
    uint32_t new_base_from;
    // Share of its slots from which a base counts as full, percent.
    uint32_t full_percent;
} settings_t;

#define SETTINGS_DEFAULT { .new_base_from = 16, .full_percent = 85 }
#define SETTINGS_SCHEMA                                                                                                    \
    "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{"                                                \
    "\"new_base_from\":{\"type\":\"integer\",\"default\":16,\"minimum\":1,\"maximum\":10000,"                            \
    "\"description\":\"Clones that an order must have before a new base is made for it.\"},"                              \
    "\"full_percent\":{\"type\":\"integer\",\"default\":85,\"minimum\":1,\"maximum\":100,"                               \
    "\"description\":\"Share of its slots from which a base counts as full, percent.\"}}}"

// Problems that are reported at once.
#define PROBLEMS 8

typedef struct {
    // A JSON path, as `$.full_percent`.
    char path[64];
    size_t path_length;
    const char *message;
} problem_t;

// Reads a JSON text; an empty one and `null` are the defaults. Returns how many problems there are.
size_t settings_read(const char *json, size_t length, settings_t *settings, problem_t found[PROBLEMS]);
