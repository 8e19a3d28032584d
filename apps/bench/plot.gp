# One figure of a run, as SVG; `make figures` sets points (a file), figure (time or speedup) and run
# (its file's name). Without background, in medium colours: it is read on white and on black.
set terminal svg size 960,500 font 'sans-serif,15' noenhanced
set encoding utf8

ink = '#808080'
set border 3 lc rgb ink
set tics nomirror out textcolor rgb ink
set grid lc rgb '#80808080' lw 0.7
set key outside right top reverse Left textcolor rgb ink samplen 2.5 spacing 1.3
set title textcolor rgb ink
set xlabel 'T, tokens of the text' textcolor rgb ink
set ylabel textcolor rgb ink

# distinct for most colour-blind readers, each with its own symbol
colours = '#d55e00 #3a8fd0 #00a070 #c060a8 #b08800 #8070e0 #909090'
do for [i=1:7] {
    set linetype i lc rgb word(colours, i) lw 2.5 pt 0+word('7 5 9 11 13 6 4', i) \
        ps (i > 2 && i < 6 ? 1.1 : 0.9)
}
set linetype cycle 7
set logscale x 2
set format x '%.0f'
set offsets graph 0.03, graph 0.03, 0, 0
if (figure eq 'time') {
    set title sprintf('forward: seconds (%s)', run)
    set logscale y 10
    set format y '%g'
    set ylabel 'seconds, median and quartiles'
} else {
    set title sprintf('forward: times as fast as dense attention (%s)', run)
    set logscale y 2
    set format y '%gx'
    set ylabel 'dense / this, above 1 is faster'
    set arrow from graph 0, first 1 to graph 1, first 1 nohead lc rgb ink lw 1.5 dt 2
}
stats points using 1 nooutput
plot for [c=0:STATS_blocks-1] points index c using 1:2:3:4 with yerrorlines lt c+1 \
    title columnheader(1)
