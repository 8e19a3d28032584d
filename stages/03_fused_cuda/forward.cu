/** @file
 *  @brief Forward: compress the pack, then two launches over all query rows. Also plain causal
 *  attention. */
#include "stage.cuh"

/* Arguments of the attention kernels, for the rows of the last load. */
attend_args make_attend_args(const stage *st) {
    attend_args a;
    a.c = st->c;
    a.tiles = st->tiles;
    a.n_tiles = st->n_tiles;
    a.seqs = st->seqs;
    a.row_t = st->row_t;
    a.row_seq = st->row_seq;
    for (int x = 0; x < LAYOUTS; x++)
        a.in[x] = st->in[x];
    a.q_t = st->q_t;
    a.gate = st->gate;
    a.out = st->out;
    for (int x = 0; x < BRANCHES; x++)
        a.out_x[x] = st->out_x[x];
    a.stats = st->stats;
    a.block_idx = st->block_idx;
    a.importance = st->importance;
    a.J = st->batch.J;
    a.forced = st->forced;
    return a;
}

nsa_status forward(void *self) {
    stage *st = (stage *)self;
    const attend_args args = make_attend_args(st);
    const size_t idx_bytes = (size_t)(st->batch.R * st->c.Hkv * st->c.n) * sizeof(int32_t);
    TRY(poison(st, NSA_MEM_FORWARD | NSA_MEM_SCRATCH));
    TRY(start_phases(st));
    TRY(compress_pack(st));
    TRY(record_phase(st, PHASE_COMPRESS));
    TRY(attend_cmp(st, &args));
    TRY(record_phase(st, PHASE_CMP));
    if (args.forced && idx_bytes)
        NSA_CUDA(cudaMemcpyAsync(st->block_idx, st->forced_idx, idx_bytes, cudaMemcpyDeviceToDevice,
                                 st->stream));
    TRY(attend_slc_win(st, &args));
    TRY(record_phase(st, PHASE_SLC_WIN));
    return nsa_stream_finish(&st->streams);
}

nsa_status causal(void *self, int pair) {
    stage *st = (stage *)self;
    attend_args args = make_attend_args(st);
    args.c.w = INT32_MAX; /* the window is all that came before */
    args.in[WIN] = st->in[pair == CMP ? RAW : pair];
    args.out = st->out_causal;
    TRY(poison(st, NSA_MEM_SCRATCH));
    TRY(start_phases(st));
    TRY(attend_causal(st, &args));
    TRY(record_phase(st, PHASE_CMP));
    return nsa_stream_finish(&st->streams);
}
