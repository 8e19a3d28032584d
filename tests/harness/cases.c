/** @file cases.c
 *  @brief Awkward shapes on purpose. Defaults: Hq=4, Hkv=2, dk=8, dv=6, l=8, d=4, l2=16, n=4 (1 at
 * the start, 2 local), w=12, phi=mean: every boundary comes within a hundred tokens. */
#include "harness/cases.h"

const listed_case cases[] = {
    /* around every edge: l = 8, l' = 16, w = 12, n*l' = 64 */
    {"T=1", QUICK | PATH},
    {"T=7", 0},
    {"T=8", QUICK},
    {"T=9,phi=mlp,hidden=5", 0},
    {"T=11", 0},
    {"T=12,phi=gated", 0},
    {"T=13", 0},
    {"T=15", 0},
    {"T=16", 0},
    {"T=17,phi=mlp,hidden=7", QUICK | PATH},
    {"T=63", 0},
    {"T=64", 0},
    {"T=65", QUICK | PATH},
    {"T=79", 0},
    {"T=80", PATH},
    {"T=97,phi=mlp,hidden=10", QUICK | PATH},
    {"T=100", QUICK},
    {"T=100,phi=gated", QUICK | PATH},
    {"T=130,phi=gated,n=5", 0},
    {"T=161,phi=mlp,hidden=16", 0},
    /* one block selected by more queries than one partial sum takes: 1024 in stage 03 */
    {"T=1100,Hq=1,Hkv=1,dk=2,dv=2,l=16,d=16,l2=16,n=1,init=0,local=1,w=1000,rows=1080", PATH},
    /* groups */
    {"T=90,Hq=2,Hkv=2", 0},
    {"T=90,Hq=6,Hkv=3,phi=gated", 0},
    {"T=90,Hq=6,Hkv=2", QUICK | PATH},
    {"T=90,Hq=8,Hkv=1", 0},
    {"T=100,Hq=16,Hkv=1,dk=16,dv=16", QUICK},
    {"T=90,Hq=20,Hkv=1,dk=5,dv=3", PATH},
    {"T=80,Hq=40,Hkv=2,dk=4,dv=4", 0},
    /* dims */
    {"T=90,dk=1,dv=1", 0},
    {"T=90,dk=7,dv=13,phi=mlp,hidden=3", 0},
    {"T=70,dk=33,dv=17,phi=gated", 0},
    {"T=40,Hq=2,Hkv=1,dk=256,dv=256", PATH},
    {"T=40,Hq=2,Hkv=1,dk=192,dv=128,phi=mlp,hidden=20", PATH},
    /* blocks: d = l, l = l', all one, long overlap, d = 1 */
    {"T=100,d=8,phi=mlp,hidden=6", 0},
    {"T=100,l=16,d=4", QUICK},
    {"T=100,l=16,d=16,phi=gated", 0},
    {"T=60,l=1,d=1,l2=1,n=6", QUICK | PATH},
    {"T=80,l=4,d=1,l2=8,n=5", 0},
    {"T=80,l=12,d=4,l2=12,n=4,phi=mlp,hidden=6", 0},
    {"T=120,l=8,d=2,l2=24,n=3,init=0,local=2", PATH},
    {"T=300,l=256,d=16,l2=256,n=2,init=0,local=1,dk=4,dv=4", 0},
    /* selection: no free block, one, many, n larger than the number of blocks */
    {"T=100,n=3", 0},
    {"T=100,n=1,init=0,local=1", QUICK | PATH},
    {"T=150,n=7,init=2,local=3", 0},
    {"T=150,n=6,init=0,local=1,phi=gated", 0},
    {"T=60,n=128", 0},
    {"T=200,l=4,d=4,l2=4,n=20,Hq=2,Hkv=1", 0},
    /* window */
    {"T=90,w=1", QUICK | PATH},
    {"T=90,w=16", 0},
    {"T=90,w=17,phi=gated", 0},
    {"T=90,w=89", 0},
    {"T=90,w=90", 0},
    {"T=90,w=1000", PATH},
    /* the window is the branch with the most keys; plain causal attention has more, in all rows of
       a tile of 64 queries */
    {"T=260,n=1,init=0,local=1,w=100", 0},
    /* scale and size of scores */
    {"T=100,scale=0.05", 0},
    {"T=100,scale=2", 0},
    {"T=100,data=large", QUICK | PATH},
    {"T=100,data=large,phi=mlp,hidden=8", 0},
    {"T=280,data=large,dk=24,dv=40,w=200", 0}, /* later blocks have larger scores */
    {"T=150,data=large,phi=gated,n=6", 0}, /* the last free block has importance 1e-19 or less */
    /* gradients that are zero by identity, with large queries: their rounding grows with x */
    {"seqs=1+1+1+1,data=large,dv=128,dk=64", 0},
    {"T=9,data=large,w=1,dk=256,dv=256,Hq=16,Hkv=1", 0},
    /* the edges of the range: of scale, of values, of exact scores, of importances; and a gated
     * compressor whose exp overflows float32 without the maximum subtracted */
    {"T=70,scale=7.888609052210118e-31", 0},
    {"T=70,data=faint,scale=1.2676506002282294e+30", 0},
    {"T=70,data=big,scale=1e-12,phi=mlp,hidden=5", 0},
    {"T=70,data=huge,phi=mlp,hidden=5", 0},
    {"T=70,data=low,scale=0.7", QUICK},
    {"T=70,data=high,scale=7", 0},
    {"T=140,data=rising,scale=1,n=9,w=140,Hq=2,Hkv=1", 0},
    {"T=96,data=tiny,scale=1,n=5", QUICK},
    {"T=70,data=shifted,phi=gated", 0},
    /* gates of exactly 0 and 1: a gate of 0 still has a gradient */
    {"T=70,data=shut", QUICK | PATH},
    {"T=97,data=shut,phi=mlp,hidden=10,Hq=6", 0},
    /* at the bounds: heads of a group, blocks selected; near them: overlap of compression blocks, a
     * long gated block */
    {"T=66,Hq=128,Hkv=1,dk=4,dv=4", 0},
    {"T=140,l=1,d=1,l2=1,n=128,Hq=2,Hkv=1", 0},
    {"T=300,l=256,d=1,l2=256,n=2,init=0,local=1,dk=4,dv=4,Hq=2,Hkv=1", 0},
    {"T=100,l=32,d=8,l2=32,phi=gated,dk=4,dv=4", 0},
    {"T=100,l=40,d=8,l2=40,phi=gated,dk=4,dv=4", 0}, /* more tokens than a warp has lanes */
    {"T=200,Hq=2,Hkv=1,dk=2,dv=2,l=48,d=1,l2=48,n=2,init=0,local=1", 0},
    /* every row's only block lies in two blocks of memory */
    {"T=160,Hq=1,Hkv=1,dk=1,dv=1,l=8,d=4,l2=48,n=1,init=0,local=1", 0},
    /* a batch of the compressors has more than 256 rows: its sums over rows are in parts */
    {"T=60,Hq=9,Hkv=9,dk=2,dv=2,l=2,d=1,l2=4,phi=gated,seed=2", 0},
    /* exact ties */
    {"T=140,data=ties", QUICK | PATH},
    {"T=140,data=ties,phi=gated", 0},
    {"T=140,data=ties,phi=mlp,hidden=6,Hq=6,seed=10", 0},
    {"T=200,data=planted,n=6", QUICK | PATH},
    {"T=200,data=planted,n=5,phi=gated,Hq=8", 0},
    {"T=200,data=planted,n=6,phi=mlp,hidden=6,Hq=16,Hkv=1", 0},
    /* the first block and one of which not all is visible: equal terms in opposite order */
    {"T=64,data=ties,init=0,local=1,l=12,d=4,l2=12,n=3,Hq=1,Hkv=1,dk=2,dv=2", QUICK},
    /* packs: empty sequences, sequences shorter than a block, edges in the middle of blocks */
    {"seqs=40+33", 0},
    {"seqs=15+0+115+70,phi=mlp,hidden=6", QUICK | PATH},
    {"seqs=0+1+0+90", 0},
    {"seqs=0+1+0+0+0+2+0+0", 0}, /* more sequences than tokens */
    {"seqs=7+8+9+17+64+65", PATH},
    {"seqs=100+0,phi=gated,n=5", 0},
    {"seqs=3+5,phi=gated", 0},
    {"seqs=70+81+66,data=planted", 0},
    {"seqs=1+3+0+1,l=1,d=1,l2=1,n=3", 0}, /* sequences of exactly l tokens, with a known result */
    {"seqs=1+1+1+1+1+1+1+1", PATH},
    /* sequences with more compressed tokens than a block in memory or a batch of the mlp takes */
    {"seqs=70+75+0+5,l=2,d=1,l2=4,n=5,dk=3,dv=2,phi=mlp,hidden=4,seed=3", 0},
    /* small enough for central differences, with blocks to select and to reject */
    {"T=44,l=4,d=2,l2=4,n=4,w=5,Hq=2,Hkv=1,dk=3,dv=2", QUICK},
    {"T=44,l=4,d=2,l2=4,n=4,w=5,Hq=4,Hkv=2,dk=3,dv=2,phi=gated", QUICK | PATH},
    {"T=44,l=4,d=2,l2=4,n=4,w=5,Hq=4,Hkv=2,dk=3,dv=2,phi=mlp,hidden=5", QUICK},
    {"seqs=20+0+24,l=4,d=2,l2=4,n=4,w=5,Hq=2,Hkv=1,dk=3,dv=2,phi=mlp,hidden=4", 0},
    /* the paper's shape, on sampled rows */
    {"T=1200,Hq=16,Hkv=1,dk=192,dv=128,l=32,d=16,l2=64,n=16,w=512,phi=mlp,hidden=384,rows=12", 0},
    {"T=1200,Hq=16,Hkv=1,dk=64,dv=64,l=32,d=16,l2=64,n=16,w=512,phi=gated,rows=24", 0},
    /* as many compressed keys as 70000 tokens have with the paper's l and d */
    {"T=4300,Hq=2,Hkv=1,dk=3,dv=2,l=1,d=1,l2=4,n=4,w=5,rows=9", PATH},
    /* 2048: two-level summation has just filled its first partial sum */
    {"T=2048,Hq=2,Hkv=1,dk=3,dv=2,l=1,d=1,l2=4,n=4,w=5,rows=5", 0},
    /* long sums of a group of several tiles, and of wide outputs */
    {"T=4200,Hq=17,Hkv=1,dk=2,dv=65,l=1,d=1,l2=4,n=4,w=5,rows=3", 0},
    /* decode splits the compressed keys and the window's, and each warp has several blocks of them
     */
    {"T=520,Hq=1,Hkv=1,dk=2,dv=2,l=1,d=1,l2=4,n=4,w=300", 0},
    /* 65535 compressed keys. The gradients of pe are small remainders: the dS of a row cancel. So
     * they show how exact the sum over all those keys is. (The seed is one with a remainder that is
     * not too small: the smaller it is, the closer any float32 stage comes to the tolerance.) */
    {"T=65536,Hq=1,Hkv=1,l=2,d=1,l2=64,n=16,w=64,phi=mlp,hidden=8,rows=9,dk=8,dv=8,seed=5", 0},
    /* expected results from an independent program */
    {"vector=all_ties", QUICK},
    {"vector=forced_index", QUICK},
    {"vector=gated_small", QUICK},
    {"vector=mean_small", QUICK},
    {"vector=mlp_small", QUICK},
    {"vector=no_init_scaled", QUICK},
    {"vector=no_overlap", QUICK},
    {"vector=one_token", QUICK},
    {"vector=packed", QUICK | PATH},
    {"vector=paper_ratio", QUICK | PATH},
    {"vector=planted_ties", QUICK},
    {"vector=shorter_than_block", QUICK},
};

const int case_count = sizeof cases / sizeof cases[0];
