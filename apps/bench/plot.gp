# One figure of one run, as SVG on standard output. figures.sh sets
#   points  a file of `nsa bench --plot-data`
#   figure  time, speedup, share or phases
#   pass    forward, backward or decode
#   run     the run file's name, for the title
#
# No background, and colours of medium lightness, so that it is readable on white and on black.
set terminal svg size 960,500 font 'sans-serif,15' noenhanced
set encoding utf8

ink = '#808080'
set border 3 lc rgb ink
set tics nomirror out textcolor rgb ink
set grid lc rgb '#80808080' lw 0.7
set key outside right top reverse Left textcolor rgb ink samplen 2.5 spacing 1.3
set title textcolor rgb ink
set xlabel textcolor rgb ink
set ylabel textcolor rgb ink

# distinct for most colour-blind readers, each with its own symbol
set linetype 1 lc rgb '#d55e00' lw 2.5 pt 7 ps 0.9
set linetype 2 lc rgb '#3a8fd0' lw 2.5 pt 5 ps 0.9
set linetype 3 lc rgb '#00a070' lw 2.5 pt 9 ps 1.1
set linetype 4 lc rgb '#c060a8' lw 2.5 pt 11 ps 1.1
set linetype 5 lc rgb '#b08800' lw 2.5 pt 13 ps 1.1
set linetype 6 lc rgb '#8070e0' lw 2.5 pt 6 ps 0.9
set linetype 7 lc rgb '#909090' lw 2.5 pt 4 ps 0.9
set linetype cycle 7

if (figure eq 'phases') {
    set title sprintf('%s: where the time goes, per cent (%s)', pass, run)
    set style data histograms
    set style histogram rowstacked
    set style fill solid 1.0 border rgb '#80808000'
    set boxwidth 0.6
    set yrange [0:100]
    set bmargin 4
    plot for [c=2:7] points using c:xtic(1) lt c-1 title columnheader(c)
} else {
    set logscale x 2
    set xlabel 'T, tokens of the text'
    set format x '%.0f'
    set offsets graph 0.03, graph 0.03, 0, 0
    stats points using 1 nooutput
    curves = STATS_blocks
    if (figure eq 'time') {
        set title sprintf('%s: seconds (%s)', pass, run)
        set logscale y 10
        set format y '%g'
        set ylabel 'seconds, median and quartiles'
    }
    if (figure eq 'speedup') {
        set title sprintf('%s: times as fast as dense attention (%s)', pass, run)
        set logscale y 2
        set format y '%gx'
        set ylabel 'dense / this, above 1 is faster'
        set arrow from graph 0, first 1 to graph 1, first 1 nohead lc rgb ink lw 1.5 dt 2
    }
    if (figure eq 'share') {
        set title sprintf('%s: share of the ceiling, per cent (%s)', pass, run)
        set yrange [0:100]
        set ylabel 'per cent of sgemm or of copying'
    }
    plot for [c=0:curves-1] points index c using 1:2:3:4 with yerrorlines lt c+1 \
        title columnheader(1)
}
