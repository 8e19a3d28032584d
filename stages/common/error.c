/** @file error.c
 *  @brief Status names and the text of a thread's last error. */
#include "nsa.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

const char *nsa_status_name(nsa_status status) {
    switch (status) {
    case NSA_OK:
        return "ok";
    case NSA_ERR_CONFIG:
        return "bad config";
    case NSA_ERR_INPUT:
        return "bad input";
    case NSA_ERR_MEMORY:
        return "out of memory";
    case NSA_ERR_STATE:
        return "calls out of order";
    case NSA_ERR_UNSUPPORTED:
        return "not supported by this stage";
    case NSA_ERR_DEVICE:
        return "device error";
    case NSA_ERR_IO:
        return "input/output error";
    }
    return "unknown status";
}

const char *nsa_last_error(void) {
    return last_error;
}

nsa_status(nsa_fail)(nsa_status status, const char *format, ...) {
    /* Format into a buffer first: an argument may be nsa_last_error() itself. */
    char text[sizeof last_error];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(last_error, sizeof last_error, "%s", text);
    return status;
}
