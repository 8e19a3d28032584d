/** @file cmd_list.c
 *  @brief `nsa list`: the stages in the order of the ladder, and whether this machine runs them. */
#include "commands.h"
#include "io/text.h"
#include "nsa_find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NAMES = 18,      /* widths of the first three columns, each with a trailing space */
    ARITHMETIC = 10, /* "bfloat16" is the longest */
    RUNS = 11,       /* "simulator" */
    IDEA = NAMES + ARITHMETIC + RUNS,
    WIDTH = 80
};

/** The command line. */
typedef struct list_options {
    const char *stages; /**< the folder, NULL for the default */
    int names;          /**< names alone, for scripts */
} list_options;

static error_t parse(int key, char *arg, struct argp_state *state) {
    list_options *options = state->input;
    switch (key) {
    case 'S':
        options->stages = arg;
        return 0;
    case 'n':
        options->names = 1;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

/* Print text in the last column, broken at spaces; the cursor stands at that column. */
static void print_wrapped(const char *text) {
    size_t columns = WIDTH - IDEA;
    while (strlen(text) > columns) {
        size_t n = columns;
        while (n && text[n] != ' ')
            n--;
        if (!n) /* a single long word, probably a path */
            n = columns;
        printf("%.*s\n%*s", (int)n, text, IDEA, "");
        text += n + (text[n] == ' ');
    }
    puts(text);
}

/* One row. available() is called now: a device may come and go. */
static void print_stage(const nsa_found *found) {
    static const char *const arithmetic[] = {"float64", "float32", "bfloat16"};
    const nsa_stage *stage = found->stage;
    char name[TEXT_SHOWN], problem[4 * sizeof found->problem]; /* both may contain any bytes */
    const char *why = text_show(problem, sizeof problem, found->problem, strlen(found->problem));
    const char *where = "no";
    int runs = 0;
    if (stage) {
        runs = stage->available() == NSA_OK;
        why = nsa_last_error();
    }
    if (runs)
        where = stage->device ? stage->device() : "CPU";
    /* A long name gets its own line, to keep the columns aligned. */
    text_show(name, sizeof name, found->name, strlen(found->name));
    if (strlen(name) >= NAMES)
        printf("%s\n%*s", name, NAMES, "");
    else
        printf("%-*s", NAMES, name);
    printf("%-*s%-*s", ARITHMETIC,
           stage && (unsigned)stage->arith < 3 ? arithmetic[stage->arith] : "?", RUNS, where);
    /* After a long device name, continue on the next line. */
    if (strlen(where) >= RUNS)
        printf("\n%*s", IDEA, "");
    print_wrapped(stage ? stage->idea : why);
    /* Below the idea, why it does not run; for a stage that did not load, `why` replaces the
     * idea. */
    if (stage && !runs) {
        printf("%*s", IDEA, "");
        print_wrapped(*why ? why : "(it does not say why)");
    }
}

int cmd_list(int argc, char **argv) {
    static const struct argp_option known[] = {
        {"stages", 'S', "DIR", 0, "Folder of the stages' NN_name.so", 0},
        {"names", 'n', 0, 0, "Print the names alone, one a line", 0},
        {0}};
    static const struct argp argp = {
        .options = known,
        .parser = parse,
        .doc = "List the stages: the one idea of each, what it computes in, and whether it runs on "
               "this machine, with the reason where it does not."
               "\vWithout --stages the folder is $NSA_STAGES, else `stages` beside this program or "
               "../lib/nsa/stages from it."};
    list_options options = {0};
    nsa_found *list;
    size_t count;
    int code = command_parse(&argp, 0, argc, argv, NULL, &options);
    if (code)
        return code;
    nsa_status status = nsa_find_stages(options.stages, &list, &count);
    if (status)
        return command_status(status, argv[0]);
    if (!options.names)
        printf("%-*s%-*s%-*s%s\n", NAMES, "stage", ARITHMETIC, "computes", RUNS, "runs on", "idea");
    for (size_t i = 0; i < count; i++) {
        if (options.names)
            puts(list[i].name);
        else
            print_stage(&list[i]);
    }
    nsa_free_stages(list, count);
    return EXIT_DONE;
}
